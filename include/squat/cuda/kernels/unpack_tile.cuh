#pragma once

// Codes of a unit as the registers of A that they are (fragments.cuh), turned into float16 numbers: for
// who multiplies them by something else than a few columns.
//
// A pair of codes takes a shift, a bit operation (the code under the exponent of 1024), a subtraction
// that is exact, and a multiply-add with scale and zero: one rounding to float16.

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// The codes of tile `tile` of a unit of `tiles` tiles, as pairs of integers: a0 and a1, and for units
/// of 16 columns a2 and a3.
template <int Bits, int Columns>
__device__ inline void read_codes(const std::uint8_t *unit, int tiles, int tile, Word *codes) {
  const int lane = lane_index();
  if constexpr (Bits == 3) {
    constexpr int registers = Columns / 4;
    Word high[registers];
    read_codes<2, Columns>(unit, tiles, tile, codes);
    read_codes<1, Columns>(unit + unit_words(2, tiles, Columns) * 4 * warp_lanes, tiles, tile, high);
#pragma unroll
    for (int i = 0; i < registers; ++i) codes[i] |= high[i] << 2;
  } else {
    const auto *words = reinterpret_cast<const Word *>(unit);
    const int count = unit_words(Bits, tiles, Columns);
    constexpr int places = tile_places(Bits, Columns);
    constexpr Word mask = ((1u << Bits) - 1) * 0x10001u;
    if constexpr (Columns == 16 && Bits == 8) {
      const Word low = words[unit_word(count, lane, 2 * tile)];
      const Word high = words[unit_word(count, lane, 2 * tile + 1)];
      codes[0] = low & mask, codes[1] = high & mask;
      codes[2] = low >> 8 & mask, codes[3] = high >> 8 & mask;
    } else {
      const Word word = words[unit_word(count, lane, tile / places)] >> (tile % places * Bits);
      codes[0] = word & mask, codes[1] = word >> 8 & mask;
      if constexpr (Columns == 16) {
        codes[2] = word >> (places * Bits) & mask, codes[3] = word >> (8 + places * Bits) & mask;
      }
    }
  }
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

/// zero + scale * code.
__device__ inline Word unpacked(Word codes, Word scale, Word zero) {
  return saturated(__hfma2(code_numbers(codes), as_halves(scale), as_halves(zero)));
}
/// scale * (code - middle), middle being half an integer: the difference is exact.
__device__ inline Word unpacked_about(Word codes, float middle, Word scale) {
  return saturated(__hmul2(__hsub2(code_numbers(codes), __float2half2_rn(middle)), as_halves(scale)));
}

}  // namespace squat::cuda
