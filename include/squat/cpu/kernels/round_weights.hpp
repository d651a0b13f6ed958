#pragma once

// Floats as integers, for sums of products in integer arithmetic.

#include <algorithm>
#include <cstdint>

#include "squat/core/instruction_set.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"

#if defined(SQUAT_CPU_AVX512)
#include "squat/cpu/kernels/round_floats_avx512.hpp"
#elif defined(SQUAT_CPU_AVX2)
#include "squat/cpu/kernels/round_floats_avx2.hpp"
#else
#include "squat/cpu/kernels/round_floats.hpp"
#endif

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// What int8 weights of codes of `bits` bits are held to. 8-bit codes leave
/// AVX2's 16-bit pair sums no more room: 2 * 64 * 255 < 2^15.
constexpr int most_weight(int bits) { return bits == 8 ? 64 : 127; }

/// What uint8 weights, of codes of up to 4 bits, are held to.
inline constexpr int most_unsigned_weight = 255;

/// int8 terms of a weight. Rounding to one term adds an error of 1 / 127 of the
/// largest weight times a code's distance from the middle of its range: a few
/// per cent of what codes of up to 4 bits err themselves. 8-bit codes get a
/// second term for what the first leaves, in steps of 1 / 128 of its.
constexpr int weight_terms(int bits) { return bits == 8 ? 2 : 1; }

/// What makes the largest of some numbers `steps`; 0 where they are too small for
/// its inverse.
inline float rounding_scale(float largest, float steps) {
  return largest > 1e-30f ? steps / largest : 0.0f;
}

/// Rounds the first `count` weights of each row, a multiple of 8, to bytes of at
/// most `most`: weight ~ multipliers[row] * rounded. largest: the greatest magnitude
/// of each row, or null. rests: the sum of weight less rounded weight of each row.
/// KeepFractions: what is left of a weight, in steps of its row's multiplier, takes
/// its place.
template <bool KeepFractions = false, class Weight>
inline void round_weights(RowView<float> weights, Index rows, Index count, int most,
                          RowView<Weight> rounded, const float *largest, float *multipliers,
                          float *rests) {
  for_row_blocks(rows, [&]<int RowCount>(Index row) {
    const RowView<float> x{weights[row], weights.stride};
    float scales[RowCount];
    if (largest == nullptr) {
      largest_magnitudes<RowCount>({x.data, x.stride}, count, scales);
    } else {
      std::copy_n(largest + row, RowCount, scales);
    }
    for (int r = 0; r < RowCount; ++r) {
      const float greatest = scales[r];
      scales[r] = rounding_scale(greatest, static_cast<float>(most));
      multipliers[row + r] = scales[r] > 0 ? greatest * (1 / static_cast<float>(most)) : 0.0f;
    }
    round_floats<RowCount, KeepFractions>(x, count, scales,
                                          RowView<Weight>{rounded[row], rounded.stride}, rests + row);
    for (int r = 0; r < RowCount; ++r) rests[row + r] *= multipliers[row + r];
  });
}

/// The second term of weights of which round_weights() kept the fractions.
inline void round_fractions(RowView<float> fractions, Index rows, Index count,
                            RowView<std::int8_t> rounded, const float *first_multipliers,
                            float *multipliers, float *rests) {
  constexpr float steps = 128;
  for_row_blocks(rows, [&]<int RowCount>(Index row) {
    float scales[RowCount];
    std::fill_n(scales, RowCount, steps);
    round_floats<RowCount, false>({fractions[row], fractions.stride}, count, scales,
                                  RowView<std::int8_t>{rounded[row], rounded.stride}, rests + row);
    for (int r = 0; r < RowCount; ++r) {
      multipliers[row + r] = first_multipliers[row + r] / steps;
      rests[row + r] *= multipliers[row + r];
    }
  });
}

/// Rounds the first `count` numbers of each row, a multiple of 8, to int16 of at
/// most 32767. steps: what a step of each row is worth.
inline void round_rows(RowView<float> x, Index rows, Index count, RowView<std::int16_t> rounded,
                       float *steps) {
  for_row_blocks(rows, [&]<int RowCount>(Index row) {
    float scales[RowCount], rests[RowCount];
    largest_magnitudes<RowCount>({x[row], x.stride}, count, scales);
    for (int r = 0; r < RowCount; ++r) {
      scales[r] = rounding_scale(scales[r], 32767);
      steps[row + r] = scales[r] > 0 ? 1 / scales[r] : 0.0f;
    }
    round_floats<RowCount, false>({x[row], x.stride}, count, scales,
                                  RowView<std::int16_t>{rounded[row], rounded.stride}, rests);
  });
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
