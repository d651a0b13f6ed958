#pragma once

// byte_vector.hpp for AVX-512 VNNI.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

using ByteVector = __m512i;
using SumVector = __m512i;
inline constexpr Index vector_lanes = 16;
inline constexpr int rows_of_decode = 4, phases_of_decode = 4;

inline __mmask16 first_lanes(Index count) {
  return static_cast<__mmask16>((1u << std::min<Index>(count, vector_lanes)) - 1);
}

inline ByteVector load_lanes(const std::uint8_t *x, Index count) {
  return _mm512_maskz_loadu_epi32(first_lanes(count), x);
}

inline ByteVector repeat_lane(const void *x) {
  std::int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm512_set1_epi32(four);
}

inline ByteVector repeat_table(const void *x) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i *>(x)));
}

inline ByteVector lane_before(ByteVector x, const std::uint8_t *first) {
  return _mm512_alignr_epi32(x, repeat_lane(first), 15);
}

template <int Shift>
inline ByteVector bits_from(ByteVector x, int mask) {
  if constexpr (Shift > 0) x = _mm512_srli_epi16(x, Shift);
  if constexpr (Shift < 0) x = _mm512_slli_epi16(x, -Shift);
  return _mm512_and_si512(x, _mm512_set1_epi8(static_cast<char>(mask)));
}

inline ByteVector look_up(ByteVector table, ByteVector x) { return _mm512_shuffle_epi8(table, x); }

template <int Bit>
inline ByteVector where_bit(ByteVector x, ByteVector a, ByteVector b) {
  const __mmask64 set = _mm512_test_epi8_mask(x, _mm512_set1_epi8(static_cast<char>(1 << Bit)));
  return _mm512_mask_blend_epi8(set, a, b);
}

inline SumVector no_sum() { return _mm512_setzero_si512(); }

/// By name, as in dot_codes_avx512.hpp.
template <class Weight>
[[gnu::always_inline]] inline void add_level_products(SumVector &sum, ByteVector first,
                                                      ByteVector second, ByteVector first_weights,
                                                      ByteVector second_weights) {
  const auto add = [&sum](__m512i unsigned_bytes, __m512i signed_bytes) __attribute__((always_inline)) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
  };
  if constexpr (std::is_signed_v<Weight>) {
    add(first, first_weights);
    add(second, second_weights);
  } else {
    add(first_weights, first);
    add(second_weights, second);
  }
}

inline void add_four_sums(float *to, const SumVector (&sums)[4], float multiplier, float offset,
                          Index count) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_or_si512(low, _mm512_set1_epi32(8));
  const __m512i even[2] = {_mm512_permutex2var_epi32(sums[0], low, sums[2]),
                           _mm512_permutex2var_epi32(sums[0], high, sums[2])};
  const __m512i odd[2] = {_mm512_permutex2var_epi32(sums[1], low, sums[3]),
                          _mm512_permutex2var_epi32(sums[1], high, sums[3])};
  const __m512 factor = _mm512_set1_ps(multiplier), addend = _mm512_set1_ps(offset);
  for (int quarter = 0; quarter < 4 && quarter * 4 < count; ++quarter, to += 16) {
    const __m512i four =
        _mm512_permutex2var_epi32(even[quarter / 2], quarter % 2 == 0 ? low : high, odd[quarter / 2]);
    const __m512 before = _mm512_add_ps(addend, _mm512_loadu_ps(to));
    _mm512_storeu_ps(to, _mm512_fmadd_ps(factor, _mm512_cvtepi32_ps(four), before));
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
