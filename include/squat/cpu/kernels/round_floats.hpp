#pragma once

// Rounding of floats to int8 and int16, eight at a time.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "squat/coding/chunks.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

typedef float EightFloats __attribute__((vector_size(32)));
typedef std::uint32_t EightWords __attribute__((vector_size(32)));

/// max |x_i| of `count` numbers, a multiple of 8, of each of `RowCount` rows.
template <int RowCount>
inline void largest_magnitudes(RowView<const float> x, Index count, float *largest) {
  for (int row = 0; row < RowCount; ++row) {
    EightFloats most = {};
    for (Index i = 0; i < count; i += 8) {
      EightFloats number;
      std::memcpy(&number, x[row] + i, sizeof number);
      const EightFloats size = number < 0 ? -number : number;
      most = size > most ? size : most;
    }
    largest[row] = 0;
    for (int lane = 0; lane < 8; ++lane) largest[row] = std::max(largest[row], most[lane]);
  }
}

/// to[r][i] = x[r][i] * scales[r] to the nearest integer, for `count` numbers, a
/// multiple of 8, of each of `RowCount` rows. rests: the sums of the fractions
/// left, which take the place of x if KeepFractions.
template <int RowCount, bool KeepFractions, class Integer>
inline void round_floats(RowView<float> x, Index count, const float *scales, RowView<Integer> to,
                         float *rests) {
  typedef Integer Integers __attribute__((vector_size(8 * sizeof(Integer))));
  for (int row = 0; row < RowCount; ++row) {
    EightFloats sum = {};
    for (Index i = 0; i < count; i += 8) {
      EightFloats scaled;
      std::memcpy(&scaled, x[row] + i, sizeof scaled);
      scaled = scaled * scales[row];
      const EightFloats shifted = scaled + integer_bits;
      EightWords words;
      std::memcpy(&words, &shifted, sizeof words);
      const Integers low = __builtin_convertvector(words, Integers);
      std::memcpy(to[row] + i, &low, sizeof low);
      const EightFloats fraction = scaled - (shifted - integer_bits);
      if constexpr (KeepFractions) std::memcpy(x[row] + i, &fraction, sizeof fraction);
      sum += fraction;
    }
    rests[row] = 0;
    for (int lane = 0; lane < 8; ++lane) rests[row] += sum[lane];
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
