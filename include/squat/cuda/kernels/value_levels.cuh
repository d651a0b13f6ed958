#pragma once

// Levels of symmetric values, code less middle, as float16: what a warp takes that has 16 channels of
// all tokens.

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/cuda/kernels/unpack_tile.cuh"
#include "squat/cuda/page/code_places.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// Of the channels of one tile of `Tiles`. Codes of 2 and 4 bits take a bit operation and a multiply-add
/// a pair, wherever they stand in their bytes.
template <int Bits, int Tiles>
class ValueLevels {
 public:
  __device__ explicit ValueLevels(int tile) : tile_(tile) {
    if constexpr (!by_bit) return;
    const int place = tile % places;
    lane_bytes_ = lane_word(value_words(Bits, Tiles), lane_index(), tile / places * 2) * 4;
    left_ = bit - Bits * place;
    right_ = 8 - left_;
  }

  /// Of a step of 16 tokens: rows g and g + 8 of columns 2t and 2t + 1, then of 2t + 8 and 2t + 9.
  __device__ void read(const std::uint8_t *step, __half2 (&levels)[4]) const {
    if constexpr (by_bit) {
      const uint2 codes = *reinterpret_cast<const uint2 *>(step + lane_bytes_);
      levels[0] = at_bit(codes.x << left_), levels[1] = at_bit(codes.y << left_);
      levels[2] = at_bit(codes.x >> right_), levels[3] = at_bit(codes.y >> right_);
    } else {
      Word codes[4];
      read_value_codes<Bits, Tiles>(step, tile_, codes);
#pragma unroll
      for (int i = 0; i < 4; ++i) levels[i] = __hsub2(code_numbers(codes[i]), __float2half2_rn(middle));
    }
  }

 private:
  static constexpr bool by_bit = Bits == 2 || Bits == 4;
  static constexpr float middle = static_cast<float>((1 << Bits) - 1) / 2;
  static constexpr int places = by_bit ? 8 / Bits : 1;
  /// Where codes are moved to in halves: as far left as leaves them below the exponent.
  static constexpr int bit = Bits == 2 ? 8 : 4;

  /// Codes at bit `bit` of each half: under the exponent of 1024 they are 1024 + 2^bit code.
  __device__ static __half2 at_bit(Word codes) {
    constexpr Word mask = ((1u << Bits) - 1) * 0x10001u << bit;
    constexpr float unit = 1.0f / (1 << bit);
    return __hfma2(as_halves((codes & mask) | 0x64006400u), __float2half2_rn(unit),
                   __float2half2_rn(-1024 * unit - middle));
  }

  int tile_;
  int lane_bytes_ = 0, left_ = 0, right_ = 0;
};

}  // namespace squat::cuda
