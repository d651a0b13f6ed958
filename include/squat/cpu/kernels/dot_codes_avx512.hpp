#pragma once

// dot_codes.hpp for AVX-512 VNNI: vpdpbusd adds four products of an unsigned
// code and a signed weight to each of 16 lanes.

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

/// Rows and blocks of lanes at a time: their product sums, in registers, are
/// enough in flight to hide the latency of vpdpbusd.
inline constexpr int most_dot_rows = 8;
template <int RowCount>
inline constexpr int dot_blocks = RowCount == 8 ? 2 : 4;

/// sum[lane] += the four products of lane's bytes. One operand of vpdpbusd is
/// unsigned: the codes, or weights that are, where codes are too small to have a
/// sign. By name: of the intrinsic, GCC 12 keeps sum in two registers and moves it to
/// and fro.
template <class Weight>
[[gnu::always_inline]] inline void add_products(__m512i &sum, __m512i codes, __m512i weights) {
  const auto add = [&sum](__m512i unsigned_bytes, __m512i signed_bytes) __attribute__((always_inline)) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
  };
  if constexpr (std::is_signed_v<Weight>) {
    add(codes, weights);
  } else {
    add(weights, codes);
  }
}

/// sums[r][b] += the products of one part of a block a lane block.
template <int Bits, int RowCount, int Blocks, class Weight>
[[gnu::always_inline]] inline void dot_part(__m512i (&sums)[RowCount][Blocks],
                                            const __m512i (&words)[Blocks], int part,
                                            RowView<const Weight> weights) {
  const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << Bits) - 1));
  __m512i codes[Blocks];
  SQUAT_UNROLL(16)
  for (int b = 0; b < Blocks; ++b) {
    codes[b] = _mm512_srli_epi32(words[b], static_cast<unsigned>(part * Bits));
    if constexpr (Bits < 8) codes[b] = _mm512_and_si512(codes[b], mask);
  }
  SQUAT_UNROLL(16)
  for (int r = 0; r < RowCount; ++r) {
    std::int32_t four;
    std::memcpy(&four, weights[r] + part * 4, sizeof four);
    const __m512i weight = _mm512_set1_epi32(four);
    SQUAT_UNROLL(16)
    for (int b = 0; b < Blocks; ++b) add_products<Weight>(sums[r][b], codes[b], weight);
  }
}

/// sums[r][b] += the products of one block a lane block, of which `parts` parts
/// are filled: all of them, as far as the code is unrolled for them.
template <int Bits, bool Full, int RowCount, int Blocks, class Weight>
[[gnu::always_inline]] inline void dot_block(__m512i (&sums)[RowCount][Blocks],
                                             const std::uint8_t *packed, Index run_bytes,
                                             std::ptrdiff_t ahead, int parts,
                                             RowView<const Weight> weights) {
  __m512i words[Blocks];
  SQUAT_UNROLL(16)
  for (int b = 0; b < Blocks; ++b) {
    words[b] = _mm512_loadu_si512(packed + b * run_bytes);
    prefetch_ahead(packed + b * run_bytes, ahead);
  }
  if constexpr (Full) {
    SQUAT_UNROLL(16)
    for (int part = 0; part < 8 / Bits; ++part) dot_part<Bits>(sums, words, part, weights);
  } else {
    SQUAT_UNROLL(1)
    for (int part = 0; part < parts; ++part) dot_part<Bits>(sums, words, part, weights);
  }
}

/// `RowCount` rows over `Blocks` blocks of 16 lanes: their product many sums in
/// registers, enough of them in flight to hide the latency of vpdpbusd.
template <int Bits, int RowCount, int Blocks, class Weight>
void dot_lanes(const std::uint8_t *packed, Index run_bytes, std::ptrdiff_t ahead, Index inner,
               RowView<const Weight> weights, const float *multipliers, const float *offsets,
               SumRows accumulated) {
  __m512i sums[RowCount][Blocks];
  SQUAT_UNROLL(16)
  for (int r = 0; r < RowCount; ++r) {
    SQUAT_UNROLL(16)
    for (int b = 0; b < Blocks; ++b) sums[r][b] = _mm512_setzero_si512();
  }
  Index first = 0;
  for (; first + block_inner<Bits> <= inner; first += block_inner<Bits>, packed += block_bytes) {
    dot_block<Bits, true>(sums, packed, run_bytes, ahead, 8 / Bits,
                          RowView<const Weight>{weights.data + first, weights.stride});
  }
  if (first < inner) {
    dot_block<Bits, false>(sums, packed, run_bytes, ahead, static_cast<int>((inner - first) / 4),
                           RowView<const Weight>{weights.data + first, weights.stride});
  }
  SQUAT_UNROLL(16)
  for (int r = 0; r < RowCount; ++r) {
    const __m512 multiplier = _mm512_set1_ps(multipliers[r]), offset = _mm512_set1_ps(offsets[r]);
    SQUAT_UNROLL(16)
    for (int b = 0; b < Blocks; ++b) {
      float *to = accumulated[r] + b * lanes;
      const __m512 sum = _mm512_cvtepi32_ps(sums[r][b]);
      _mm512_storeu_ps(to, _mm512_fmadd_ps(multiplier, sum, _mm512_add_ps(offset, _mm512_loadu_ps(to))));
    }
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
