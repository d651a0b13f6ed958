#pragma once

// byte_vector.hpp for AVX2.

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

using ByteVector = __m256i;
using SumVector = __m256i;
inline constexpr Index vector_lanes = 8;
inline constexpr int rows_of_decode = 4, phases_of_decode = 2;

/// Trellis rows fill whole registers.
inline ByteVector load_lanes(const std::uint8_t *x, Index) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x));
}

inline ByteVector repeat_lane(const void *x) {
  std::int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm256_set1_epi32(four);
}

inline ByteVector repeat_table(const void *x) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i *>(x)));
}

inline ByteVector lane_before(ByteVector x, const std::uint8_t *first) {
  const __m256i moved = _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(7, 0, 1, 2, 3, 4, 5, 6));
  return _mm256_blend_epi32(moved, repeat_lane(first), 1);
}

template <int Shift>
inline ByteVector bits_from(ByteVector x, int mask) {
  if constexpr (Shift > 0) x = _mm256_srli_epi16(x, Shift);
  if constexpr (Shift < 0) x = _mm256_slli_epi16(x, -Shift);
  return _mm256_and_si256(x, _mm256_set1_epi8(static_cast<char>(mask)));
}

inline ByteVector look_up(ByteVector table, ByteVector x) { return _mm256_shuffle_epi8(table, x); }

template <int Bit>
inline ByteVector where_bit(ByteVector x, ByteVector a, ByteVector b) {
  return _mm256_blendv_epi8(a, b, _mm256_slli_epi16(x, 7 - Bit));
}

inline SumVector no_sum() { return _mm256_setzero_si256(); }

/// Four products fit 16 bits (level_origin).
template <class Weight>
[[gnu::always_inline]] inline void add_level_products(SumVector &sum, ByteVector first,
                                                      ByteVector second, ByteVector first_weights,
                                                      ByteVector second_weights) {
  const auto pairs = [](ByteVector level, ByteVector weight) __attribute__((always_inline)) {
    return std::is_signed_v<Weight> ? _mm256_maddubs_epi16(level, weight)
                                    : _mm256_maddubs_epi16(weight, level);
  };
  const __m256i both = _mm256_add_epi16(pairs(first, first_weights), pairs(second, second_weights));
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(both, _mm256_set1_epi16(1)));
}

inline void add_four_sums(float *to, const SumVector (&sums)[4], float multiplier, float offset, Index) {
  const __m256 factor = _mm256_set1_ps(multiplier), addend = _mm256_set1_ps(offset);
  // Lanes 0, 1 and 4, 5, then 2, 3 and 6, 7 of two phases.
  const __m256i even[2] = {_mm256_unpacklo_epi32(sums[0], sums[2]),
                           _mm256_unpackhi_epi32(sums[0], sums[2])};
  const __m256i odd[2] = {_mm256_unpacklo_epi32(sums[1], sums[3]),
                          _mm256_unpackhi_epi32(sums[1], sums[3])};
  const auto add = [&](float *four, __m128i sum) {
    const __m128 before = _mm_add_ps(_mm256_castps256_ps128(addend), _mm_loadu_ps(four));
    _mm_storeu_ps(four, _mm_fmadd_ps(_mm256_castps256_ps128(factor), _mm_cvtepi32_ps(sum), before));
  };
  for (int pair = 0; pair < 2; ++pair) {
    const __m256i first = _mm256_unpacklo_epi32(even[pair], odd[pair]);
    const __m256i second = _mm256_unpackhi_epi32(even[pair], odd[pair]);
    float *of_pair = to + pair * 8;
    add(of_pair, _mm256_castsi256_si128(first));
    add(of_pair + 4, _mm256_castsi256_si128(second));
    add(of_pair + 16, _mm256_extracti128_si256(first, 1));
    add(of_pair + 20, _mm256_extracti128_si256(second, 1));
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
