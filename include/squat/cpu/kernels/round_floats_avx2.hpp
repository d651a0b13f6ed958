#pragma once

// round_floats.hpp for AVX2.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "squat/cpu/kernels/row_blocks.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// max |x_i| of `count` numbers, a multiple of 8, of each of `RowCount` rows.
template <int RowCount>
inline void largest_magnitudes(RowView<const float> x, Index count, float *largest) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 most[RowCount];
  std::fill_n(most, RowCount, _mm256_setzero_ps());
  for (Index i = 0; i < count; i += 8) {
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      most[row] = _mm256_max_ps(most[row], _mm256_andnot_ps(sign, _mm256_loadu_ps(x[row] + i)));
    }
  }
  for (int row = 0; row < RowCount; ++row) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(most[row]), _mm256_extractf128_ps(most[row], 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    largest[row] = _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
  }
}

/// Eight numbers as Integers, which they fit. Packing works within 128 bits.
template <class Integer>
inline void store_integers(Integer *to, __m256i x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x, x), 0x08);
  const __m128i low = _mm256_castsi256_si128(words);
  if constexpr (sizeof(Integer) == 2) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), low);
  } else {
    _mm_storel_epi64(reinterpret_cast<__m128i *>(to),
                     std::is_signed_v<Integer> ? _mm_packs_epi16(low, low) : _mm_packus_epi16(low, low));
  }
}

/// to[r][i] = x[r][i] * scales[r] to the nearest integer, for `count` numbers, a
/// multiple of 8, of each of `RowCount` rows. rests: the sums of the fractions
/// left, which take the place of x if KeepFractions.
template <int RowCount, bool KeepFractions, class Integer>
inline void round_floats(RowView<float> x, Index count, const float *scales, RowView<Integer> to,
                         float *rests) {
  __m256 sums[RowCount];
  std::fill_n(sums, RowCount, _mm256_setzero_ps());
  for (Index i = 0; i < count; i += 8) {
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x[row] + i), _mm256_set1_ps(scales[row]));
      const __m256i rounded = _mm256_cvtps_epi32(scaled);
      store_integers(to[row] + i, rounded);
      const __m256 fraction = _mm256_sub_ps(scaled, _mm256_cvtepi32_ps(rounded));
      if constexpr (KeepFractions) _mm256_storeu_ps(x[row] + i, fraction);
      sums[row] = _mm256_add_ps(sums[row], fraction);
    }
  }
  for (int row = 0; row < RowCount; ++row) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(sums[row]), _mm256_extractf128_ps(sums[row], 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    rests[row] = _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
