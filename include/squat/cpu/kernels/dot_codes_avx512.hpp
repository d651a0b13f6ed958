#pragma once

// dot_codes.hpp for AVX-512 VNNI: vpdpbusd adds four products of an unsigned
// code and a signed weight to each of 16 lanes.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "squat/coding/codes.hpp"
#include "squat/cpu/kernels/lane_codes.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Rows and blocks of lanes at a time: their product sums, in registers, are
/// enough in flight to hide the latency of vpdpbusd.
inline constexpr int most_dot_rows = 8;
template <int RowCount>
inline constexpr int dot_blocks = RowCount == 8 ? 2 : 4;

/// Whether both planes of 3-bit codes meet weights at once.
inline constexpr bool dots_three_bits = true;

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

/// Codes of a part, 4 inner indices, of dot_inner.
template <int Bits>
[[gnu::always_inline]] inline __m512i load_part(const LaneCodes &codes, int part) {
  if constexpr (Bits == 3) {
    const __m512i low = load_part<2>({{codes.plane.data + part / 4 * block_bytes, 0}, {}}, part % 4);
    __m512i high = _mm512_loadu_si512(codes.high.data);
    high = part < 2 ? _mm512_slli_epi32(high, static_cast<unsigned>(2 - part))
                    : _mm512_srli_epi32(high, static_cast<unsigned>(part - 2));
    return _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(4), 0xf8);  // low | (high & 4)
  } else {
    __m512i words = _mm512_loadu_si512(codes.plane.data);
    if constexpr (Bits == 8) return words;
    words = _mm512_srli_epi32(words, static_cast<unsigned>(part * Bits));
    return _mm512_and_si512(words, _mm512_set1_epi8(static_cast<char>((1 << Bits) - 1)));
  }
}

/// sums[r][b] += the products of a part of Blocks blocks of lanes.
template <int Bits, int RowCount, int Blocks, class Weight>
[[gnu::always_inline]] inline void dot_part(__m512i (&sums)[RowCount][Blocks], const LaneCodes &codes,
                                            int part, RowView<const Weight> weights) {
  __m512i of_lanes[Blocks];
  SQUAT_UNROLL(16)
  for (int b = 0; b < Blocks; ++b) of_lanes[b] = load_part<Bits>(codes.from(b * lanes), part);
  SQUAT_UNROLL(16)
  for (int r = 0; r < RowCount; ++r) {
    std::int32_t four;
    std::memcpy(&four, weights[r] + part * 4, sizeof four);
    const __m512i weight = _mm512_set1_epi32(four);
    SQUAT_UNROLL(16)
    for (int b = 0; b < Blocks; ++b) add_products<Weight>(sums[r][b], of_lanes[b], weight);
  }
}

/// `RowCount` rows over `Blocks` blocks of 16 lanes: their product many sums in
/// registers, enough of them in flight to hide the latency of vpdpbusd.
template <int Bits, int RowCount, int Blocks, class Weight>
void dot_lanes(LaneCodes codes, std::ptrdiff_t ahead, Index inner, RowView<const Weight> weights,
               const float *multipliers, const float *offsets, SumRows accumulated) {
  __m512i sums[RowCount][Blocks];
  SQUAT_UNROLL(16)
  for (int r = 0; r < RowCount; ++r) {
    SQUAT_UNROLL(16)
    for (int b = 0; b < Blocks; ++b) sums[r][b] = _mm512_setzero_si512();
  }
  constexpr int parts = dot_inner<Bits> / 4;
  Index first = 0;
  for (; first + dot_inner<Bits> <= inner; first += dot_inner<Bits>) {
    SQUAT_UNROLL(16)
    for (int b = 0; b < Blocks; ++b) prefetch_block<Bits>(codes.from(b * lanes), ahead);
    SQUAT_UNROLL(16)
    for (int part = 0; part < parts; ++part)
      dot_part<Bits>(sums, codes, part, RowView<const Weight>{weights.data + first, weights.stride});
    codes = next_block<Bits>(codes);
  }
  SQUAT_UNROLL(1)
  for (int part = 0; first + part * 4 < inner; ++part)
    dot_part<Bits>(sums, codes, part, RowView<const Weight>{weights.data + first, weights.stride});
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
