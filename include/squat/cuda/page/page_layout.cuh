#pragma once

// The bytes of a page on the GPU: what the kernels read fastest, in the order of matrix fragments
// (code_places.cuh, fragments.cuh).
//
// A page holds `Group` tokens of one layer. Its heads follow each other, each a multiple of 32 bytes:
//
//   key scales   float16 [HeadDim], in the order of key_element(); the sign of that of channel 0
//                names the KeySpace, that of channel 2 says that values are coded about their mean
//   key zeros    likewise
//   key codes    units of `unit` channels (or coordinates) in their order; a unit of 3 bits is its
//                low two bits, then its high bit
//   value codes  steps of 16 tokens in their order; one of 3 bits likewise
//   value scales float16 [value_scales, Group], in the order of value_element(); plain values: as many
//                zeros behind them
//
// 16-bit keys are tiles of A, rows = tokens: [token tile, channel tile]; 16-bit values tiles with rows =
// channels: [token tile, channel tile]. Neither has zeros or scales.

#include <cstddef>
#include <cstdint>

#include "squat/coding/coding.hpp"
#include "squat/cuda/page/code_places.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// Where the scale and zero of a channel of the keys stand: a lane's own, of channels g and g + 8 of 16,
/// follow each other.
__host__ __device__ constexpr int key_element(int channel) {
  return channel / 16 * 16 + channel % 8 * 2 + channel % 16 / 8;
}
/// Those of a token of the values: g, g + 8, g + 16, g + 24 of 32 follow each other.
__host__ __device__ constexpr int value_element(int token) {
  return token / 32 * 32 + token % 8 * 4 + token % 32 / 8;
}

/// Where the warps of a block share the channels of a head: tiles of 16 that each has, and warps.
__host__ __device__ constexpr int tiles_of_warp(int head_dim) { return head_dim > 256 ? 2 : 1; }
__host__ __device__ constexpr int channel_warps(int head_dim) {
  return head_dim / (16 * tiles_of_warp(head_dim));
}

/// Whether there are kernels for such pages: those that pack hold the keys of a page as floats in shared
/// memory, where a block has 163 KiB on an A100.
constexpr bool fits_kernels(int head_dim, int group) { return head_dim * group <= 256 * 128; }

template <int HeadDimension, int GroupTokens, int KeyBitCount, int ValueBitCount>
struct PageLayout {
  static constexpr int HeadDim = HeadDimension, Group = GroupTokens;
  static constexpr int KeyBits = KeyBitCount, ValueBits = ValueBitCount;
  static_assert(HeadDim % 32 == 0 && HeadDim <= 576,
                "squat: on CUDA head_dim is a multiple of 32, at most 576");
  static_assert(Group == 32 || Group == 64 || Group == 128, "squat: on CUDA group is 32, 64 or 128");
  static_assert(fits_kernels(HeadDim, Group), "squat: on CUDA such heads have pages of fewer tokens");

  static_assert(HeadDim <= 256 || (KeyBits == 16) == (ValueBits == 16),
                "squat: on CUDA such heads have keys and values that are both packed, or both exact");

  static constexpr int token_tiles = Group / 16, channel_tiles = HeadDim / 16;
  /// Channels of a unit of keys, as in allocation_unit().
  static constexpr int unit = HeadDim < 128 ? 8 : 16;
  static constexpr int key_units = HeadDim / unit;
  /// Channels of a group of plain values.
  static constexpr int value_group = 32;

  /// Bytes of a unit of keys of that width; 0 for none.
  __host__ __device__ static constexpr int key_unit_bytes(int bits) { return Group * unit * bits / 8; }
  /// Bytes of the values of 16 tokens.
  static constexpr int value_step_bytes =
      ValueBits == 16  ? HeadDim * 32
      : ValueBits == 3 ? value_plane_bytes(2, channel_tiles) + value_plane_bytes(1, channel_tiles)
                       : value_plane_bytes(ValueBits, channel_tiles);

  static constexpr int key_scales = 0;
  static constexpr int key_zeros = HeadDim * 2;
  static constexpr int key_codes = KeyBits == 16 ? 0 : key_zeros + HeadDim * 2;
  static constexpr int value_codes = key_codes + key_units * key_unit_bytes(KeyBits);
  static constexpr int value_scales = value_codes + token_tiles * value_step_bytes;

  /// Whether the mean value was taken off the values of a head, whose bytes these are. Only pages of
  /// packed keys can say so.
  __host__ __device__ static bool values_about_mean(const std::uint8_t *head) {
    if constexpr (KeyBits == 16 || ValueBits == 16) return false;
    return (head[key_scales + about_mean_byte] & 0x80u) != 0;
  }
  static constexpr int about_mean_byte = key_element(2) * 2 + 1;

  /// Scales a token has.
  __host__ __device__ static constexpr int scales_of_a_value(ValueCoding coding) {
    return ValueBits == 16 ? 0 : coding == ValueCoding::symmetric ? 1 : HeadDim / value_group;
  }
  __host__ __device__ static constexpr int value_zeros(ValueCoding coding) {
    return value_scales + scales_of_a_value(coding) * Group * 2;
  }
  /// Where the values' scales and zeros end.
  __host__ __device__ static constexpr int value_end(ValueCoding coding) {
    return value_zeros(coding) +
           (coding == ValueCoding::plain ? scales_of_a_value(coding) * Group * 2 : 0);
  }
  __host__ __device__ static constexpr int head_bytes(ValueCoding coding) {
    return (value_end(coding) + 31) / 32 * 32;
  }
};

/// Exact rows: blocks of 16 tokens, keys (rows = tokens) then values (rows = channels), as tiles of A,
/// [blocks, kv_heads, 2, HeadDim / 16, 256] elements of 16 bits.
template <int HeadDim>
struct BlockLayout {
  static constexpr int tokens = 16;
  static constexpr int part_elements = tokens * HeadDim;  // keys, or values
  static constexpr int elements = 2 * part_elements;

  __host__ __device__ static constexpr int key(int token, int channel) {
    return channel / 16 * 256 + tile_element(token, channel % 16);
  }
  __host__ __device__ static constexpr int value(int token, int channel) {
    return part_elements + channel / 16 * 256 + tile_element(channel % 16, token);
  }
};

}  // namespace squat::cuda
