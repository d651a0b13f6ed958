#pragma once

// integer_matrix.hpp for AVX2: vpmaddwd.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "squat/cpu/row_blocks.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Rows and blocks of 16 outputs at a time.
inline constexpr int most_matrix_rows = 8;
template <int RowCount>
inline constexpr int output_blocks = 1;

/// The products of one block of 16 outputs with `RowCount` rows, eight outputs
/// a register.
template <int RowCount, int Blocks>
void multiply_pairs(const std::int16_t *entries, Index inputs, RowView<const std::int16_t> x,
                    const float *steps, const float *scales, RowView<float> result) {
  static_assert(Blocks == 1);
  SQUAT_UNROLL(16)
  for (int half_block = 0; half_block < 2; ++half_block) {
    __m256i sums[RowCount];
    std::fill_n(sums, RowCount, _mm256_setzero_si256());
    for (Index input = 0; input < inputs; input += 2) {
      const __m256i block = _mm256_loadu_si256(
          reinterpret_cast<const __m256i *>(entries + input * lanes + half_block * lanes));
      SQUAT_UNROLL(16)
      for (int row = 0; row < RowCount; ++row) {
        std::int32_t pair;
        std::memcpy(&pair, x[row] + input, sizeof pair);
        sums[row] = _mm256_add_epi32(sums[row], _mm256_madd_epi16(block, _mm256_set1_epi32(pair)));
      }
    }
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      const __m256 scale =
          _mm256_mul_ps(_mm256_set1_ps(steps[row]), _mm256_loadu_ps(scales + half_block * 8));
      _mm256_storeu_ps(result[row] + half_block * 8,
                       _mm256_mul_ps(scale, _mm256_cvtepi32_ps(sums[row])));
    }
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
