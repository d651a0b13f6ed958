#pragma once

// dot_codes.hpp for AVX2: vpmaddubsw adds pairs of products of an unsigned and a
// signed byte into 16 bits, vpmaddwd pairs of those into 32.
//
// A pair sum of codes below 2^Bits and weights of at most 127 (255 without a sign) is at
// most 254 (510) * (2^Bits - 1): 16 bits hold 43 (21) of them at 2 bits and 8 (4) at 4
// bits, which is how many are added before they are widened. At 8 bits one has to fit,
// so weights there are at most 64 (see round_weights.hpp).

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "squat/coding/codes.hpp"
#include "squat/cpu/kernels/prefetch.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Rows and blocks of lanes at a time.
inline constexpr int most_dot_rows = 4;
template <int RowCount>
inline constexpr int dot_blocks = 1;

/// Blocks of a plane whose pair sums 16 bits hold. A block adds 8 / Bits of them.
template <int Bits, class Weight>
inline constexpr Index blocks_before_widening =
    Bits == 8 ? 1
              : 32767 / (2 * (std::is_signed_v<Weight> ? 127 : 255) * ((1 << Bits) - 1)) / (8 / Bits);

/// pairs += the pair sums of products. Weights are the unsigned operand if they
/// are unsigned, codes otherwise. At few bits, held in a register: GCC would form the
/// products of a whole block first, in memory, and add them up in another order.
template <int Bits, class Weight>
[[gnu::always_inline]] inline void add_products(__m256i &pairs, __m256i codes, __m256i weights) {
  pairs = _mm256_add_epi16(pairs, std::is_signed_v<Weight> ? _mm256_maddubs_epi16(codes, weights)
                                                           : _mm256_maddubs_epi16(weights, codes));
  if constexpr (Bits <= 2) asm("" : "+x"(pairs));
}

/// Halves of a block at a time, eight lanes a register: both share what is broadcast,
/// where registers hold the sums of both.
template <int Bits>
inline constexpr int dot_halves = Bits <= 2 ? 2 : 1;

/// pairs[row][h] += the products of half h of a block, of which `parts` parts are
/// filled: all of them, as far as the code is unrolled for them.
template <int Bits, bool Full, int RowCount, int Halves, class Weight>
[[gnu::always_inline]] inline void dot_block(__m256i (&pairs)[RowCount][Halves],
                                             const std::uint8_t *block, int parts,
                                             RowView<const Weight> weights) {
  const __m256i mask = _mm256_set1_epi8(static_cast<char>((1 << Bits) - 1));
  __m256i words[Halves];
  SQUAT_UNROLL(16)
  for (int h = 0; h < Halves; ++h) {
    words[h] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(block) + h);
  }
  const auto add_part = [&](int part) __attribute__((always_inline)) {
    __m256i codes[Halves];
    SQUAT_UNROLL(16)
    for (int h = 0; h < Halves; ++h) {
      codes[h] = words[h];
      if constexpr (Bits < 8)
        codes[h] = _mm256_and_si256(_mm256_srli_epi32(words[h], part * Bits), mask);
    }
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      std::int32_t four;
      std::memcpy(&four, weights[row] + part * 4, sizeof four);
      const __m256i weight = _mm256_set1_epi32(four);
      SQUAT_UNROLL(16)
      for (int h = 0; h < Halves; ++h) add_products<Bits, Weight>(pairs[row][h], codes[h], weight);
    }
  };
  if constexpr (Full) {
    SQUAT_UNROLL(16)
    for (int part = 0; part < 8 / Bits; ++part) add_part(part);
  } else {
    SQUAT_UNROLL(1)
    for (int part = 0; part < parts; ++part) add_part(part);
  }
}

/// `RowCount` rows over `Halves` halves of one block of lanes.
template <int Bits, int RowCount, int Halves, class Weight>
[[gnu::always_inline]] inline void dot_half_lanes(const std::uint8_t *packed, std::ptrdiff_t ahead,
                                                  Index inner, RowView<const Weight> weights,
                                                  const float *multipliers, const float *offsets,
                                                  const SumRows &accumulated) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[RowCount][Halves];
  std::fill_n(&sums[0][0], RowCount * Halves, _mm256_setzero_si256());
  constexpr Index step = blocks_before_widening<Bits, Weight> * block_inner<Bits>;
  for (Index begin = 0; begin < inner; begin += step) {
    __m256i pairs[RowCount][Halves];
    std::fill_n(&pairs[0][0], RowCount * Halves, _mm256_setzero_si256());
    const auto add_block = [&]<bool Full>(Index first, int parts) __attribute__((always_inline)) {
      prefetch_ahead(packed, ahead);
      dot_block<Bits, Full>(pairs, packed, parts,
                            RowView<const Weight>{weights.data + first, weights.stride});
      packed += block_bytes;
    };
    if constexpr (Bits == 8) {
      add_block.template operator()<true>(begin, 1);
    } else {
      const Index end = std::min(inner, begin + step);
      for (Index first = begin; first < end; first += block_inner<Bits>) {
        if (first + block_inner<Bits> <= inner) {
          add_block.template operator()<true>(first, 8 / Bits);
        } else {
          add_block.template operator()<false>(first, static_cast<int>((inner - first) / 4));
        }
      }
    }
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      SQUAT_UNROLL(16)
      for (int h = 0; h < Halves; ++h) {
        sums[row][h] = _mm256_add_epi32(sums[row][h], _mm256_madd_epi16(pairs[row][h], ones));
      }
    }
  }
  SQUAT_UNROLL(16)
  for (int row = 0; row < RowCount; ++row) {
    const __m256 multiplier = _mm256_set1_ps(multipliers[row]), offset = _mm256_set1_ps(offsets[row]);
    SQUAT_UNROLL(16)
    for (int h = 0; h < Halves; ++h) {
      float *to = accumulated[row] + h * 8;
      const __m256 before = _mm256_add_ps(offset, _mm256_loadu_ps(to));
      _mm256_storeu_ps(to, _mm256_fmadd_ps(multiplier, _mm256_cvtepi32_ps(sums[row][h]), before));
    }
  }
}

/// `RowCount` rows over one block of 16 lanes.
template <int Bits, int RowCount, int Blocks, class Weight>
void dot_lanes(const std::uint8_t *packed, Index, std::ptrdiff_t ahead, Index inner,
               RowView<const Weight> weights, const float *multipliers, const float *offsets,
               SumRows accumulated) {
  static_assert(Blocks == 1);
  SQUAT_UNROLL(2)
  for (int h = 0; h < 2; h += dot_halves<Bits>) {
    dot_half_lanes<Bits, RowCount, dot_halves<Bits>>(packed + h * 32, ahead, inner, weights, multipliers,
                                                     offsets, accumulated);
    accumulated.rows.data += dot_halves<Bits> * 8;
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
