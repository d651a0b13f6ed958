#pragma once

// integer_matrix.hpp for NEON: smull and addp.

#include <arm_neon.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "squat/cpu/kernels/row_blocks.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Rows and blocks of 16 outputs at a time.
inline constexpr int most_matrix_rows = 8;
template <int RowCount>
inline constexpr int output_blocks = 1;

/// The products of one block of 16 outputs with `RowCount` rows, four outputs a
/// register.
template <int RowCount, int Blocks>
void multiply_pairs(const std::int16_t *entries, Index inputs, RowView<const std::int16_t> x,
                    const float *steps, const float *scales, RowView<float> result) {
  static_assert(Blocks == 1);
  SQUAT_UNROLL(16)
  for (int row = 0; row < RowCount; ++row) {
    int32x4_t sums[4];
    std::fill_n(sums, 4, vdupq_n_s32(0));
    for (Index input = 0; input < inputs; input += 2) {
      std::int32_t two;
      std::memcpy(&two, x[row] + input, sizeof two);
      const int16x8_t pair = vreinterpretq_s16_s32(vdupq_n_s32(two));
      SQUAT_UNROLL(16)
      for (int quarter = 0; quarter < 4; ++quarter) {
        const int16x8_t block = vld1q_s16(entries + input * lanes + quarter * 8);
        const int32x4_t low = vmull_s16(vget_low_s16(block), vget_low_s16(pair));
        const int32x4_t high = vmull_s16(vget_high_s16(block), vget_high_s16(pair));
        sums[quarter] = vaddq_s32(sums[quarter], vpaddq_s32(low, high));
      }
    }
    SQUAT_UNROLL(16)
    for (int quarter = 0; quarter < 4; ++quarter) {
      const float32x4_t scale = vmulq_n_f32(vld1q_f32(scales + quarter * 4), steps[row]);
      vst1q_f32(result[row] + quarter * 4, vmulq_f32(scale, vcvtq_f32_s32(sums[quarter])));
    }
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
