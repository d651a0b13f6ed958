#pragma once

// dot_codes.hpp for AVX2: vpmaddubsw adds pairs of products of an unsigned code
// and a signed weight into 16 bits, vpmaddwd pairs of those into 32.
//
// A pair sum of codes below 2^Bits and weights of at most 127 is at most
// 254 * (2^Bits - 1): 16 bits hold 43 of them at 2 bits and 8 at 4 bits, which
// is how many are added before they are widened. At 8 bits one has to fit, so
// weights there are at most 64 (see round_weights.hpp).

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

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
                                                    : 32767 / (254 * ((1 << Bits) - 1)) / (8 / Bits);

/// `RowCount` rows over one block of 16 lanes, eight lanes a register.
template <int Bits, int RowCount, int Blocks>
void dot_lanes(const std::uint8_t *packed, Index, Index inner, RowView<const std::int8_t> weights,
               const float *multipliers, float factor, RowView<float> accumulated) {
  static_assert(Blocks == 1);
  const __m256i mask = _mm256_set1_epi8(static_cast<char>((1 << Bits) - 1));
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
        __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(block));
        const int parts = static_cast<int>(std::min<Index>(8 / Bits, (inner - first) / 4));
        for (int part = 0; part < parts; ++part) {
          const __m256i codes = Bits == 8 ? words : _mm256_and_si256(words, mask);
          if constexpr (Bits < 8) words = _mm256_srli_epi32(words, Bits);
          SQUAT_UNROLL(16)
          for (int row = 0; row < RowCount; ++row) {
            std::int32_t four;
            std::memcpy(&four, weights[row] + first + part * 4, sizeof four);
            pairs[row] =
                _mm256_add_epi16(pairs[row], _mm256_maddubs_epi16(codes, _mm256_set1_epi32(four)));
          }
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
      const __m256 multiplier = _mm256_set1_ps(multipliers[row] * factor);
      _mm256_storeu_ps(to,
                       _mm256_fmadd_ps(multiplier, _mm256_cvtepi32_ps(sums[row]), _mm256_loadu_ps(to)));
    }
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
