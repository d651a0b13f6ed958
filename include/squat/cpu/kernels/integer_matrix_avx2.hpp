#pragma once

// integer_matrix.hpp for AVX2: vpmaddwd.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "squat/cpu/kernels/row_blocks.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Rows and blocks of 16 outputs at a time.
inline constexpr int most_matrix_rows = 4;
template <int RowCount>
inline constexpr int output_blocks = 1;

/// The products of one block of 16 outputs with `RowCount` rows, eight outputs
/// a register: both share what is broadcast.
template <int RowCount, int Blocks>
void multiply_pairs(const std::int16_t *entries, Index inputs, RowView<const std::int16_t> x,
                    const float *steps, const float *scales, RowView<float> result) {
  static_assert(Blocks == 1);
  __m256i sums[RowCount][2];
  std::fill_n(&sums[0][0], RowCount * 2, _mm256_setzero_si256());
  SQUAT_UNROLL(2)
  for (Index input = 0; input < inputs; input += 2, entries += 2 * lanes) {
    const auto *halves = reinterpret_cast<const __m256i *>(entries);
    const __m256i block[2] = {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      std::int32_t two;
      std::memcpy(&two, x[row] + input, sizeof two);
      const __m256i pair = _mm256_set1_epi32(two);
      SQUAT_UNROLL(16)
      for (int h = 0; h < 2; ++h) {
        sums[row][h] = _mm256_add_epi32(sums[row][h], _mm256_madd_epi16(block[h], pair));
      }
    }
  }
  SQUAT_UNROLL(16)
  for (int row = 0; row < RowCount; ++row) {
    SQUAT_UNROLL(16)
    for (int h = 0; h < 2; ++h) {
      const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(steps[row]), _mm256_loadu_ps(scales + h * 8));
      _mm256_storeu_ps(result[row] + h * 8, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(sums[row][h])));
    }
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
