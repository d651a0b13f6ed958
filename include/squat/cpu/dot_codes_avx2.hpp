#pragma once

// dot_codes.hpp for AVX2: vpmaddubsw adds pairs of products of an unsigned and a
// signed byte into 16 bits, vpmaddwd pairs of those into 32.
//
// A pair sum of codes below 2^Bits and weights of at most 255 is at most
// 510 * (2^Bits - 1): 16 bits hold 21 of them at 2 bits and 4 at 4 bits, which
// is how many are added before they are widened. At 8 bits one has to fit, so
// weights there are at most 64 (see round_weights.hpp).

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "squat/cpu/prefetch.hpp"
#include "squat/cpu/row_blocks.hpp"
#include "squat/quantize/codes.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Rows and blocks of lanes at a time.
inline constexpr int most_dot_rows = 4;
template <int RowCount>
inline constexpr int dot_blocks = 1;

/// Blocks of a plane whose pair sums 16 bits hold. A block adds 8 / Bits of them.
template <int Bits>
inline constexpr Index blocks_before_widening = Bits == 8
                                                    ? 1
                                                    : 32767 / (510 * ((1 << Bits) - 1)) / (8 / Bits);

/// pairs + the pair sums of products. Weights are the unsigned operand if they
/// are unsigned, codes otherwise.
template <class Weight>
inline __m256i add_products(__m256i pairs, __m256i codes, __m256i weights) {
  return _mm256_add_epi16(pairs, std::is_signed_v<Weight> ? _mm256_maddubs_epi16(codes, weights)
                                                          : _mm256_maddubs_epi16(weights, codes));
}

/// pairs[row] += the products of one half block, of which `parts` parts are
/// filled.
template <int Bits, int RowCount, class Weight>
[[gnu::always_inline]] inline void dot_block(__m256i (&pairs)[RowCount], __m256i words, int parts,
                                             RowView<const Weight> weights) {
  const __m256i mask = _mm256_set1_epi8(static_cast<char>((1 << Bits) - 1));
  SQUAT_UNROLL(16)
  for (int part = 0; part < parts; ++part) {
    __m256i codes = words;
    if constexpr (Bits < 8) codes = _mm256_and_si256(_mm256_srli_epi32(words, part * Bits), mask);
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      std::int32_t four;
      std::memcpy(&four, weights[row] + part * 4, sizeof four);
      pairs[row] = add_products<Weight>(pairs[row], codes, _mm256_set1_epi32(four));
    }
  }
}

/// `RowCount` rows over one block of 16 lanes, eight lanes a register.
template <int Bits, int RowCount, int Blocks, class Weight>
void dot_lanes(const std::uint8_t *packed, Index, std::ptrdiff_t ahead, Index inner,
               RowView<const Weight> weights, const float *multipliers, const float *offsets,
               SumRows accumulated) {
  static_assert(Blocks == 1);
  const __m256i ones = _mm256_set1_epi16(1);
  SQUAT_UNROLL(16)
  for (int half_block = 0; half_block < 2; ++half_block) {
    const std::uint8_t *block = packed + half_block * 32;
    __m256i sums[RowCount];
    std::fill_n(sums, RowCount, _mm256_setzero_si256());
    constexpr Index step = blocks_before_widening<Bits> * block_inner<Bits>;
    for (Index begin = 0; begin < inner; begin += step) {
      const Index end = std::min(inner, begin + step);
      __m256i pairs[RowCount];
      std::fill_n(pairs, RowCount, _mm256_setzero_si256());
      for (Index first = begin; first < end; first += block_inner<Bits>, block += block_bytes) {
        const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(block));
        if (half_block == 0) prefetch_ahead(block, ahead);
        const RowView<const Weight> block_weights{weights.data + first, weights.stride};
        if (first + block_inner<Bits> <= inner) {
          dot_block<Bits>(pairs, words, 8 / Bits, block_weights);
        } else {
          dot_block<Bits>(pairs, words, static_cast<int>((inner - first) / 4), block_weights);
        }
      }
      SQUAT_UNROLL(16)
      for (int row = 0; row < RowCount; ++row) {
        sums[row] = _mm256_add_epi32(sums[row], _mm256_madd_epi16(pairs[row], ones));
      }
    }
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      float *to = accumulated[row] + half_block * 8;
      const __m256 multiplier = _mm256_set1_ps(multipliers[row]);
      const __m256 before = _mm256_add_ps(_mm256_set1_ps(offsets[row]), _mm256_loadu_ps(to));
      _mm256_storeu_ps(to, _mm256_fmadd_ps(multiplier, _mm256_cvtepi32_ps(sums[row]), before));
    }
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
