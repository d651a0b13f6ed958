#pragma once

// integer_matrix.hpp for AVX-512: vpdpwssd, or vpmaddwd and an addition,
// without VNNI.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "squat/cpu/kernels/row_blocks.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Rows and blocks of 16 outputs at a time: sums enough in flight to hide the
/// latency of the multiply-add.
inline constexpr int most_matrix_rows = 4;
template <int RowCount>
inline constexpr int output_blocks = 4;

/// sum[lane] + the products of lane's two pairs.
inline __m512i add_pair_products(__m512i sum, __m512i a, __m512i b) {
#if defined(SQUAT_CPU_AVX512_VNNI)
  return _mm512_dpwssd_epi32(sum, a, b);
#else
  return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}

/// The products of `Blocks` blocks of 16 outputs with `RowCount` rows.
template <int RowCount, int Blocks>
void multiply_pairs(const std::int16_t *entries, Index inputs, RowView<const std::int16_t> x,
                    const float *steps, const float *scales, RowView<float> result) {
  const Index block_entries = lanes * inputs;
  __m512i sums[RowCount][Blocks];
  for (auto &row : sums)
    for (auto &sum : row) sum = _mm512_setzero_si512();
  SQUAT_UNROLL(2)
  for (Index input = 0; input < inputs; input += 2, entries += 2 * lanes) {
    __m512i block[Blocks];
    SQUAT_UNROLL(16)
    for (int b = 0; b < Blocks; ++b) block[b] = _mm512_loadu_si512(entries + b * block_entries);
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      std::int32_t two;
      std::memcpy(&two, x[row] + input, sizeof two);
      const __m512i pair = _mm512_set1_epi32(two);
      SQUAT_UNROLL(16)
      for (int b = 0; b < Blocks; ++b) {
        sums[row][b] = add_pair_products(sums[row][b], block[b], pair);
      }
    }
  }
  SQUAT_UNROLL(16)
  for (int row = 0; row < RowCount; ++row) {
    SQUAT_UNROLL(16)
    for (int b = 0; b < Blocks; ++b) {
      const __m512 scale =
          _mm512_mul_ps(_mm512_set1_ps(steps[row]), _mm512_loadu_ps(scales + b * lanes));
      _mm512_storeu_ps(result[row] + b * lanes, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sums[row][b])));
    }
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
