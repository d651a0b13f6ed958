#pragma once

// byte_vector.hpp for NEON. dot_quads() multiplies signed by signed or unsigned by unsigned bytes: what
// levels of unsigned weights lack to be unsigned is taken off their sums.

#include <arm_neon.h>

#include <cstdint>
#include <type_traits>

#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/cpu/kernels/dot_codes_neon.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

using ByteVector = uint8x16_t;
using SumVector = int32x4_t;
inline constexpr Index vector_lanes = 4;
inline constexpr int rows_of_decode = 4, phases_of_decode = 4;

inline ByteVector load_lanes(const std::uint8_t *x, Index) { return vld1q_u8(x); }

inline ByteVector repeat_lane(const void *x) {
  return vreinterpretq_u8_s8(repeat(static_cast<const std::int8_t *>(x)));
}

inline ByteVector repeat_table(const void *x) { return vld1q_u8(static_cast<const std::uint8_t *>(x)); }

inline ByteVector lane_before(ByteVector x, const std::uint8_t *first) {
  return vextq_u8(repeat_lane(first), x, 12);
}

template <int Shift>
inline ByteVector bits_from(ByteVector x, int mask) {
  if constexpr (Shift > 0) x = vshrq_n_u8(x, Shift);
  if constexpr (Shift < 0) x = vshlq_n_u8(x, -Shift);
  return vandq_u8(x, vdupq_n_u8(static_cast<std::uint8_t>(mask)));
}

inline ByteVector look_up(ByteVector table, ByteVector x) { return vqtbl1q_u8(table, x); }

template <int Bit>
inline ByteVector where_bit(ByteVector x, ByteVector a, ByteVector b) {
  return vbslq_u8(vtstq_u8(x, vdupq_n_u8(1 << Bit)), b, a);
}

inline SumVector no_sum() { return vdupq_n_s32(0); }

template <class Weight>
inline void add_level_products(SumVector &sum, ByteVector first, ByteVector second,
                               ByteVector first_weights, ByteVector second_weights) {
  const auto add = [&sum](ByteVector level, ByteVector weight) {
    if constexpr (std::is_signed_v<Weight>) {
      sum = dot_quads(sum, vreinterpretq_s8_u8(level), vreinterpretq_s8_u8(weight));
    } else {
      const ByteVector above = vaddq_u8(level, vdupq_n_u8(32));
      const SumVector excess = dot_quads(no_sum(), vdupq_n_s8(1), weight);
      sum = vsubq_s32(dot_quads(sum, vreinterpretq_s8_u8(above), weight), vshlq_n_s32(excess, 5));
    }
  };
  add(first, first_weights);
  add(second, second_weights);
}

inline void add_four_sums(float *to, const SumVector (&sums)[4], float multiplier, float offset, Index) {
  const float32x4_t factor = vdupq_n_f32(multiplier), addend = vdupq_n_f32(offset);
  float32x4x4_t four = vld4q_f32(to);
  for (int phase = 0; phase < 4; ++phase) {
    const float32x4_t before = vaddq_f32(four.val[phase], addend);
    four.val[phase] = vfmaq_f32(before, vcvtq_f32_s32(sums[phase]), factor);
  }
  vst4q_f32(to, four);
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
