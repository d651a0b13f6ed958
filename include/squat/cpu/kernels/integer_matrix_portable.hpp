#pragma once

// integer_matrix.hpp in plain C++: the reference of every other version.

#include <cstdint>

#include "squat/cpu/kernels/row_blocks.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Rows and blocks of 16 outputs at a time.
inline constexpr int most_matrix_rows = 8;
template <int RowCount>
inline constexpr int output_blocks = 1;

/// The products of one block of 16 outputs with `RowCount` rows.
template <int RowCount, int Blocks>
void multiply_pairs(const std::int16_t *entries, Index inputs, RowView<const std::int16_t> x,
                    const float *steps, const float *scales, RowView<float> result) {
  static_assert(Blocks == 1);
  for (int row = 0; row < RowCount; ++row) {
    std::int32_t sums[lanes] = {};
    for (Index input = 0; input < inputs; ++input) {
      const std::int16_t *pair = entries + input / 2 * lanes * 2 + input % 2;
      for (Index lane = 0; lane < lanes; ++lane) sums[lane] += x[row][input] * pair[lane * 2];
    }
    for (Index lane = 0; lane < lanes; ++lane) {
      result[row][lane] = steps[row] * scales[lane] * static_cast<float>(sums[lane]);
    }
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
