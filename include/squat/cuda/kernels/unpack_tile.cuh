#pragma once

// Codes of a page (code_places.cuh) as registers of A of float16 (fragments.cuh), turned into numbers:
// for who multiplies them by something else than a few columns.
//
// A pair of codes takes a shift, a bit operation (the code under the exponent of 1024), a subtraction
// that is exact, and a multiply-add with scale and zero: one rounding to float16.

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/cuda/page/code_places.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// Bytes 0 and 1 of a word as columns 2t and 2t + 1: its bytes 0 and 2.
__device__ inline Word spread_bytes(Word word) { return __byte_perm(word, 0, 0x4140); }

/// The codes of tokens g, `upper`, and g + 8, `lower`, of 16, each at the first place of a byte a
/// column; `at`: the lane's bytes.
template <int Bits, int Columns>
__device__ inline void read_key_rows(const std::uint8_t *at, int shift, Word &upper, Word &lower) {
  if constexpr (Bits >= 4 && Columns == 16) {
    const uint2 rows = *reinterpret_cast<const uint2 *>(at);
    upper = rows.x >> shift, lower = rows.y >> shift;
  } else if constexpr (Bits >= 4) {
    const Word rows = *reinterpret_cast<const Word *>(at);
    upper = spread_bytes(rows) >> shift, lower = spread_bytes(rows >> 16) >> shift;
  } else {
    if constexpr (Bits == 2 && Columns == 16) {
      upper = *reinterpret_cast<const Word *>(at);
    } else if constexpr (Bits == 2) {
      upper = spread_bytes(*reinterpret_cast<const std::uint16_t *>(at));
    } else if constexpr (Columns == 16) {
      const Word nibbles = spread_bytes(*reinterpret_cast<const std::uint16_t *>(at));
      upper = nibbles | nibbles << 4;
    } else {
      const Word nibbles = *at;
      upper = nibbles | nibbles << 12;
    }
    upper >>= shift;
    lower = upper >> Bits;
  }
}

/// The codes of tokens 16 tile to 16 tile + 15 of a unit of keys of `Tokens` tokens, as pairs of
/// integers: a0 to a3, of units of 8 channels a0 and a1.
template <int Bits, int Columns, int Tokens>
__device__ inline void read_key_codes(const std::uint8_t *unit, int tile, Word *codes) {
  if constexpr (Bits == 3) {
    constexpr int registers = Columns / 4;
    Word high[registers];
    read_key_codes<2, Columns, Tokens>(unit, tile, codes);
    read_key_codes<1, Columns, Tokens>(unit + Tokens * Columns / 4, tile, high);
#pragma unroll
    for (int i = 0; i < registers; ++i) codes[i] |= high[i] << 2;
  } else {
    constexpr Word mask = ((1u << Bits) - 1) * 0x10001u;
    constexpr CodePlace odd = key_place(Bits, Columns, 16, 0);  // where an odd tile begins in its slice
    constexpr int bytes = key_lane_bytes(Bits, Columns);
    const std::uint8_t *at = unit + (tile / 2 * warp_lanes + lane_index()) * bytes;
    const int is_odd = tile & 1;  // takes a register less than tile % 2
    Word upper, lower;
    read_key_rows<Bits, Columns>(at + is_odd * odd.byte, is_odd * odd.bit, upper, lower);
    codes[0] = upper & mask, codes[1] = lower & mask;
    if constexpr (Columns == 16) codes[2] = upper >> 8 & mask, codes[3] = lower >> 8 & mask;
  }
}

/// The codes of channels 16 tile to 16 tile + 15 of a step of values, as pairs of integers: a0 to a3.
template <int Bits, int Tiles>
__device__ inline void read_value_codes(const std::uint8_t *step, int tile, Word (&codes)[4]) {
  if constexpr (Bits == 3) {
    Word high[4];
    read_value_codes<2, Tiles>(step, tile, codes);
    read_value_codes<1, Tiles>(step + value_plane_bytes(2, Tiles), tile, high);
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] |= high[i] << 2;
  } else {
    constexpr Word mask = ((1u << Bits) - 1) * 0x10001u;
    constexpr int count = value_words(Bits, Tiles);
    const auto *words = reinterpret_cast<const Word *>(step);
    const ValuePlace upper = value_word_place(Bits, Tiles, tile, 0);
    const ValuePlace lower = value_word_place(Bits, Tiles, tile, 1);
    uint2 rows;
    if constexpr (count % 2 == 0) {  // no halves share a word: two of a tile follow each other
      rows = *reinterpret_cast<const uint2 *>(words + lane_word(count, lane_index(), upper.word));
    } else {
      rows = {words[lane_word(count, lane_index(), upper.word)],
              words[lane_word(count, lane_index(), lower.word)]};
    }
    rows = {rows.x >> (upper.place * Bits), rows.y >> (lower.place * Bits)};
    codes[0] = rows.x & mask, codes[1] = rows.y & mask;
    codes[2] = rows.x >> 8 & mask, codes[3] = rows.y >> 8 & mask;
  }
}

/// Scales (or zeros) of columns 2t, 2t + 1, then of 2t + 8, 2t + 9, of words that hold those of 2t and
/// 2t + 8, and of 2t + 1 and 2t + 9.
__device__ inline uint2 column_pairs(Word first, Word second) {
  return {__byte_perm(first, second, 0x5410), __byte_perm(first, second, 0x7632)};
}

/// Integers below 1024 as float16.
__device__ inline __half2 code_numbers(Word codes) {
  return __hsub2(as_halves(codes | 0x64006400u), __float2half2_rn(1024));
}

/// What lies beyond float16's range becomes its largest number: no infinity may meet a weight of 0.
__device__ inline Word saturated(__half2 pair) {
  const __half2 largest = __float2half2_rn(65504.0f);
  return as_word(__hmax2(__hmin2(pair, largest), __hneg2(largest)));
}

/// A pair of floats as float16, likewise.
__device__ inline Word saturated_pair(float low, float high) {
  Word pair;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

/// zero + scale * code. Saturates: it may lie beyond float16's range.
template <bool Saturates = true>
__device__ inline Word unpacked(__half2 codes, Word scale, Word zero) {
  const __half2 x = __hfma2(codes, as_halves(scale), as_halves(zero));
  return Saturates ? saturated(x) : as_word(x);
}
template <bool Saturates = true>
__device__ inline Word unpacked(Word codes, Word scale, Word zero) {
  return unpacked<Saturates>(code_numbers(codes), scale, zero);
}
/// mean + scale * (code - middle), middle being half an integer: the difference is exact.
__device__ inline Word unpacked_about(Word codes, float middle, Word scale, __half2 mean) {
  const __half2 level = __hsub2(code_numbers(codes), __float2half2_rn(middle));
  return saturated(__hfma2(level, as_halves(scale), mean));
}

}  // namespace squat::cuda
