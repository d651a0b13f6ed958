#pragma once

// dot_codes.hpp for NEON: sdot where the machine has it (Armv8.2), otherwise
// smull and sadalp.
//
// Both multiply signed by signed, or unsigned by unsigned. Codes of up to 4 bits
// are either; those of 8 bits count from 128, and sum 128 * weight is added back.

#include <arm_neon.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "squat/coding/codes.hpp"
#include "squat/cpu/kernels/lane_codes.hpp"
#include "squat/cpu/kernels/prefetch.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Rows and blocks of lanes at a time.
inline constexpr int most_dot_rows = 4;
template <int RowCount>
inline constexpr int dot_blocks = 1;

/// Whether both planes of 3-bit codes meet weights at once.
inline constexpr bool dots_three_bits = false;

/// sum[lane] + the four products of lane's bytes.
inline int32x4_t dot_quads(int32x4_t sum, int8x16_t codes, int8x16_t weights) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sum, codes, weights);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(codes), vget_low_s8(weights));
  const int16x8_t high = vmull_s8(vget_high_s8(codes), vget_high_s8(weights));
  return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}

/// The same for unsigned weights.
inline int32x4_t dot_quads(int32x4_t sum, int8x16_t codes, uint8x16_t weights) {
  const uint8x16_t unsigned_codes = vreinterpretq_u8_s8(codes);
#if defined(__ARM_FEATURE_DOTPROD)
  return vreinterpretq_s32_u32(vdotq_u32(vreinterpretq_u32_s32(sum), unsigned_codes, weights));
#else
  const uint16x8_t low = vmull_u8(vget_low_u8(unsigned_codes), vget_low_u8(weights));
  const uint16x8_t high = vmull_u8(vget_high_u8(unsigned_codes), vget_high_u8(weights));
  return vaddq_s32(sum, vreinterpretq_s32_u32(vpaddq_u32(vpaddlq_u16(low), vpaddlq_u16(high))));
#endif
}

/// Four bytes, over and over.
inline int8x16_t repeat(const std::int8_t *four) {
  std::int32_t word;
  std::memcpy(&word, four, sizeof word);
  return vreinterpretq_s8_s32(vdupq_n_s32(word));
}
inline uint8x16_t repeat(const std::uint8_t *four) {
  std::int32_t word;
  std::memcpy(&word, four, sizeof word);
  return vreinterpretq_u8_s32(vdupq_n_s32(word));
}

/// `RowCount` rows over one block of 16 lanes, four lanes a register.
template <int Bits, int RowCount, int Blocks, class Weight>
void dot_lanes(const LaneCodes &of_lanes, std::ptrdiff_t ahead, Index inner,
               RowView<const Weight> weights, const float *multipliers, const float *offsets,
               SumRows accumulated) {
  static_assert(Blocks == 1);
  const std::uint8_t *packed = of_lanes.plane.data;
  const uint8x16_t mask = vdupq_n_u8(static_cast<std::uint8_t>((1 << Bits) - 1));
  int32x4_t sums[RowCount][4];
  for (auto &row : sums) std::fill_n(row, 4, vdupq_n_s32(0));
  for (Index first = 0; first < inner; first += block_inner<Bits>, packed += block_bytes) {
    uint8x16_t words[4];
    SQUAT_UNROLL(16)
    for (int quarter = 0; quarter < 4; ++quarter) words[quarter] = vld1q_u8(packed + quarter * 16);
    prefetch_ahead(packed, ahead);
    const int parts = static_cast<int>(std::min<Index>(8 / Bits, (inner - first) / 4));
    for (int part = 0; part < parts; ++part) {
      int8x16_t codes[4];
      SQUAT_UNROLL(16)
      for (int quarter = 0; quarter < 4; ++quarter) {
        if constexpr (Bits == 8) {
          codes[quarter] = vreinterpretq_s8_u8(veorq_u8(words[quarter], vdupq_n_u8(128)));
        } else {
          codes[quarter] = vreinterpretq_s8_u8(vandq_u8(words[quarter], mask));
          words[quarter] = vshrq_n_u8(words[quarter], Bits);
        }
      }
      SQUAT_UNROLL(16)
      for (int row = 0; row < RowCount; ++row) {
        const auto weight = repeat(weights[row] + first + part * 4);
        if constexpr (Bits == 8) {
          const int32x4_t sum = dot_quads(vdupq_n_s32(0), weight, vdupq_n_s8(1));
          for (auto &quarter : sums[row]) quarter = vaddq_s32(quarter, vshlq_n_s32(sum, 7));
        }
        SQUAT_UNROLL(16)
        for (int quarter = 0; quarter < 4; ++quarter) {
          sums[row][quarter] = dot_quads(sums[row][quarter], codes[quarter], weight);
        }
      }
    }
  }
  SQUAT_UNROLL(16)
  for (int row = 0; row < RowCount; ++row) {
    SQUAT_UNROLL(16)
    for (int quarter = 0; quarter < 4; ++quarter) {
      float *to = accumulated[row] + quarter * 4;
      const float32x4_t before = vaddq_f32(vld1q_f32(to), vdupq_n_f32(offsets[row]));
      vst1q_f32(to, vfmaq_n_f32(before, vcvtq_f32_s32(sums[row][quarter]), multipliers[row]));
    }
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
