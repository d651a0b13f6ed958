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
#include "squat/cpu/kernels/lane_codes.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Rows and blocks of lanes at a time.
inline constexpr int most_dot_rows = 4;
template <int RowCount>
inline constexpr int dot_blocks = 1;

/// Whether both planes of 3-bit codes meet weights at once.
inline constexpr bool dots_three_bits = true;

/// Blocks whose pair sums 16 bits hold. A block adds one for four inner indices.
template <int Bits, class Weight>
inline constexpr Index blocks_before_widening =
    32767 / (2 * (std::is_signed_v<Weight> ? 127 : 255) * ((1 << Bits) - 1)) / (dot_inner<Bits> / 4);

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

  /// Adds products of codes of up to 4 bits.
  template <class Weight>
  [[gnu::always_inline]] void add_part(const __m256i (&codes)[2], RowView<const Weight> weights) {
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

/// Codes of a part, 4 inner indices, of dot_inner.
template <int Bits>
[[gnu::always_inline]] inline void load_part(const LaneCodes &of_lanes, int part, __m256i (&codes)[2]) {
  if constexpr (Bits == 3) {
    load_part<2>({{of_lanes.plane.data + part / 4 * block_bytes, 0}, {}}, part % 4, codes);
    SQUAT_UNROLL(16)
    for (int h = 0; h < 2; ++h) {
      __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(of_lanes.high.data) + h);
      high = part < 2 ? _mm256_slli_epi32(high, 2 - part) : _mm256_srli_epi32(high, part - 2);
      codes[h] = _mm256_or_si256(codes[h], _mm256_and_si256(high, _mm256_set1_epi8(4)));
    }
  } else {
    SQUAT_UNROLL(16)
    for (int h = 0; h < 2; ++h) {
      codes[h] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(of_lanes.plane.data) + h);
      if constexpr (Bits < 8) {
        codes[h] = _mm256_and_si256(_mm256_srli_epi32(codes[h], part * Bits),
                                    _mm256_set1_epi8(static_cast<char>((1 << Bits) - 1)));
      }
    }
  }
}

/// `RowCount` rows over one block of 16 lanes. Never inlined: beside its callers' loops GCC has no
/// registers left for the sums.
template <int Bits, int RowCount, int Blocks, class Weight>
[[gnu::noinline]] void dot_lanes(LaneCodes of_lanes, std::ptrdiff_t ahead, Index inner,
                                 RowView<const Weight> weights, const float *multipliers,
                                 const float *offsets, SumRows accumulated) {
  static_assert(Blocks == 1);
  PairSums<RowCount> sums;
  sums.clear();
  __m256i codes[2];
  if constexpr (Bits == 8) {
    const Weight *const end = weights.data + inner;
    do {  // `for` might not run at all, and GCC would keep the sums twice
      prefetch_block<Bits>(of_lanes, ahead);
      load_part<Bits>(of_lanes, 0, codes);
      sums.add_bytes(codes, weights);
      of_lanes = next_block<Bits>(of_lanes);
      weights.data += dot_inner<Bits>;
    } while (weights.data != end);
  } else {
    PairSums<RowCount> pairs;
    const Index whole = inner / dot_inner<Bits>;
    constexpr Index step = blocks_before_widening<Bits, Weight>;
    for (Index first = 0; first < whole; first += step) {
      pairs.clear();
      const Weight *const end = weights.data + std::min(whole - first, step) * dot_inner<Bits>;
      do {
        prefetch_block<Bits>(of_lanes, ahead);
        SQUAT_UNROLL(16)
        for (int part = 0; part < dot_inner<Bits> / 4; ++part) {
          load_part<Bits>(of_lanes, part, codes);
          pairs.add_part(codes, RowView<const Weight>{weights.data + part * 4, weights.stride});
        }
        of_lanes = next_block<Bits>(of_lanes);
        weights.data += dot_inner<Bits>;
      } while (weights.data != end);
      sums.widen(pairs);
    }
    if (const Index rest = inner % dot_inner<Bits>; rest > 0) {
      pairs.clear();
      prefetch_block<Bits>(of_lanes, ahead);
      SQUAT_UNROLL(1)
      for (int part = 0; part * 4 < rest; ++part) {
        load_part<Bits>(of_lanes, part, codes);
        pairs.add_part(codes, RowView<const Weight>{weights.data + part * 4, weights.stride});
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
