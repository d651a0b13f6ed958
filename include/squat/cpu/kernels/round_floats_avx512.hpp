#pragma once

// round_floats.hpp for AVX-512.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "squat/cpu/kernels/float_vector.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Calls visit(i, mask) for every sixteen of `count` numbers, a multiple of 8; mask:
/// which of them there are. The whole ones are loads and stores like any other.
template <class Visit>
[[gnu::always_inline]] inline void for_each_sixteen(Index count, Visit &&visit) {
  Index i = 0;
  for (; i + 16 <= count; i += 16) visit(i, __mmask16{0xffff});
  if (i < count) visit(i, __mmask16{0x00ff});
}

/// max |x_i| of `count` numbers, a multiple of 8, of each of `RowCount` rows.
template <int RowCount>
inline void largest_magnitudes(RowView<const float> x, Index count, float *largest) {
  __m512 most[4] = {};
  for_each_sixteen(count, [&](Index i, __mmask16 mask) {
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      most[row] = _mm512_max_ps(most[row], _mm512_abs_ps(_mm512_maskz_loadu_ps(mask, x[row] + i)));
    }
  });
  float four[4];
  largest_of_each(most, four);
  std::copy_n(four, RowCount, largest);
}

/// Four times sixteen numbers below 2^8 as bytes. Both packings work within 128
/// bits, four numbers of each operand: the last step puts those in order.
template <class Byte>
inline __m512i pack_bytes(const __m512i (&x)[4]) {
  const __m512i low = _mm512_packs_epi32(x[0], x[1]), high = _mm512_packs_epi32(x[2], x[3]);
  const __m512i bytes =
      std::is_signed_v<Byte> ? _mm512_packs_epi16(low, high) : _mm512_packus_epi16(low, high);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, bytes);
}

/// to[r][i] = x[r][i] * scales[r] to the nearest integer, for `count` numbers, a
/// multiple of 8, of each of `RowCount` rows. rests: the sums of the fractions
/// left, which take the place of x if KeepFractions.
template <int RowCount, bool KeepFractions, class Integer>
inline void round_floats(RowView<float> x, Index count, const float *scales, RowView<Integer> to,
                         float *rests) {
  __m512 sums[4] = {};
  __m512i rounded_sums[4] = {};
  Index whole = 0;
  if constexpr (sizeof(Integer) == 1 && !KeepFractions) {
    for (; whole + 64 <= count; whole += 64) {
      SQUAT_UNROLL(16)
      for (int row = 0; row < RowCount; ++row) {
        const __m512 scale = _mm512_set1_ps(scales[row]);
        __m512i rounded[4];
        SQUAT_UNROLL(16)
        for (int i = 0; i < 4; ++i) {
          const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(x[row] + whole + i * 16), scale);
          rounded[i] = _mm512_cvtps_epi32(scaled);
          sums[row] = _mm512_add_ps(sums[row], scaled);
          rounded_sums[row] = _mm512_add_epi32(rounded_sums[row], rounded[i]);
        }
        _mm512_storeu_si512(to[row] + whole, pack_bytes<Integer>(rounded));
      }
    }
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      sums[row] = _mm512_sub_ps(sums[row], _mm512_cvtepi32_ps(rounded_sums[row]));
    }
  }
  for_each_sixteen(count - whole, [&](Index offset, __mmask16 mask) {
    const Index i = whole + offset;
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      const __m512 scaled =
          _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x[row] + i), _mm512_set1_ps(scales[row]));
      const __m512i rounded = _mm512_cvtps_epi32(scaled);
      if constexpr (sizeof(Integer) == 1) {
        _mm_mask_storeu_epi8(to[row] + i, mask, _mm512_cvtepi32_epi8(rounded));
      } else {
        _mm256_mask_storeu_epi16(to[row] + i, mask, _mm512_cvtepi32_epi16(rounded));
      }
      const __m512 fraction = _mm512_sub_ps(scaled, _mm512_cvtepi32_ps(rounded));
      if constexpr (KeepFractions) _mm512_mask_storeu_ps(x[row] + i, mask, fraction);
      sums[row] = _mm512_add_ps(sums[row], fraction);
    }
  });
  float four[4];
  sum_each(sums, four);
  std::copy_n(four, RowCount, rests);
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
