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
    32767 / (2 * (std::is_signed_v<Weight> ? 127 : 255) * ((1 << Bits) - 1)) / (8 / Bits);

template <class Weight>
[[gnu::always_inline]] inline __m256i broadcast_four(const Weight *weights) {
  std::int32_t four;
  std::memcpy(&four, weights, sizeof four);
  return _mm256_set1_epi32(four);
}

/// pairs and the pair sums of products. Weights are the unsigned operand if they
/// are unsigned, codes otherwise. Held in a register: GCC would form the products of a whole
/// block first, in memory, and add them up in another order.
template <class Weight>
[[gnu::always_inline]] inline __m256i add_products(__m256i pairs, __m256i codes, __m256i weights) {
  pairs = _mm256_add_epi16(pairs, std::is_signed_v<Weight> ? _mm256_maddubs_epi16(codes, weights)
                                                           : _mm256_maddubs_epi16(weights, codes));
  asm("" : "+x"(pairs));
  return pairs;
}

/// Sums of `RowCount` rows and both halves of a block, eight lanes each, which share what is broadcast.
/// No lambda sees them, for GCC would keep them in memory and add to them half as fast.
template <int RowCount>
struct PairSums {
  __m256i of[RowCount][2];

  [[gnu::always_inline]] void clear() {
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      SQUAT_UNROLL(16)
      for (int h = 0; h < 2; ++h) of[row][h] = _mm256_setzero_si256();
    }
  }

  /// Adds 16-bit sums to these of 32 bits.
  [[gnu::always_inline]] void widen(const PairSums &pairs) {
    const __m256i ones = _mm256_set1_epi16(1);
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      SQUAT_UNROLL(16)
      for (int h = 0; h < 2; ++h)
        of[row][h] = _mm256_add_epi32(of[row][h], _mm256_madd_epi16(pairs.of[row][h], ones));
    }
  }

  /// Adds the products of the codes that are the lowest in the bytes of `words`.
  template <int Bits, class Weight>
  [[gnu::always_inline]] void add_part(const __m256i (&words)[2], RowView<const Weight> weights) {
    const __m256i mask = _mm256_set1_epi8((1 << Bits) - 1);
    __m256i codes[2];
    SQUAT_UNROLL(16)
    for (int h = 0; h < 2; ++h) codes[h] = _mm256_and_si256(words[h], mask);
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      const __m256i weight = broadcast_four(weights[row]);
      SQUAT_UNROLL(16)
      for (int h = 0; h < 2; ++h) of[row][h] = add_products<Weight>(of[row][h], codes[h], weight);
    }
  }

  /// Adds the products of 8-bit codes to sums of 32 bits.
  [[gnu::always_inline]] void add_bytes(const __m256i (&codes)[2], RowView<const std::int8_t> weights) {
    const __m256i ones = _mm256_set1_epi16(1);
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      const __m256i weight = broadcast_four(weights[row]);
      SQUAT_UNROLL(16)
      for (int h = 0; h < 2; ++h) {
        const __m256i pairs = _mm256_maddubs_epi16(codes[h], weight);
        of[row][h] = _mm256_add_epi32(of[row][h], _mm256_madd_epi16(pairs, ones));
      }
    }
  }
};

/// Both halves of a block, shifted to the right by so many bits.
[[gnu::always_inline]] inline void load_halves(const std::uint8_t *block, int shift,
                                               __m256i (&words)[2]) {
  SQUAT_UNROLL(16)
  for (int h = 0; h < 2; ++h) {
    words[h] =
        _mm256_srli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(block) + h), shift);
  }
}

/// `RowCount` rows over one block of 16 lanes. Never inlined: beside its callers' loops GCC has no
/// registers left for the sums.
template <int Bits, int RowCount, int Blocks, class Weight>
[[gnu::noinline]] void dot_lanes(const std::uint8_t *packed, Index, std::ptrdiff_t ahead, Index inner,
                                 RowView<const Weight> weights, const float *multipliers,
                                 const float *offsets, SumRows accumulated) {
  static_assert(Blocks == 1);
  PairSums<RowCount> sums;
  sums.clear();
  if constexpr (Bits == 8) {
    const Weight *const end = weights.data + inner;
    do {  // `for` might not run at all, and GCC would keep the sums twice
      prefetch_ahead(packed, ahead);
      __m256i codes[2];
      load_halves(packed, 0, codes);
      sums.add_bytes(codes, weights);
      packed += block_bytes;
      weights.data += block_inner<8>;
    } while (weights.data != end);
  } else {
    PairSums<RowCount> pairs;
    __m256i words[2];
    const Index whole = inner / block_inner<Bits>;
    constexpr Index step = blocks_before_widening<Bits, Weight>;
    for (Index first = 0; first < whole; first += step) {
      pairs.clear();
      const Index last = std::min(whole, first + step);
      const Weight *const end = weights.data + (last - first) * block_inner<Bits>;
      do {
        prefetch_ahead(packed, ahead);
        SQUAT_UNROLL(16)
        for (int part = 0; part < 8 / Bits; ++part) {
          load_halves(packed, part * Bits, words);
          pairs.template add_part<Bits, Weight>(words, {weights.data + part * 4, weights.stride});
        }
        packed += block_bytes;
        weights.data += block_inner<Bits>;
      } while (weights.data != end);
      sums.widen(pairs);
    }
    if (const Index rest = inner % block_inner<Bits>; rest > 0) {
      pairs.clear();
      prefetch_ahead(packed, ahead);
      SQUAT_UNROLL(1)
      for (int part = 0; part * 4 < rest; ++part) {
        load_halves(packed, part * Bits, words);
        pairs.template add_part<Bits, Weight>(words, {weights.data + part * 4, weights.stride});
      }
      sums.widen(pairs);
    }
  }
  SQUAT_UNROLL(16)
  for (int row = 0; row < RowCount; ++row) {
    const __m256 multiplier = _mm256_set1_ps(multipliers[row]), offset = _mm256_set1_ps(offsets[row]);
    SQUAT_UNROLL(16)
    for (int h = 0; h < 2; ++h) {
      float *to = accumulated[row] + h * 8;
      const __m256 before = _mm256_add_ps(offset, _mm256_loadu_ps(to));
      _mm256_storeu_ps(to, _mm256_fmadd_ps(multiplier, _mm256_cvtepi32_ps(sums.of[row][h]), before));
    }
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
