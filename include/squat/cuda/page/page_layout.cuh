#pragma once

// The bytes of a page on the GPU: what the kernels read fastest, in the order of matrix fragments
// (fragments.cuh).
//
// A page holds `Group` tokens of one layer. Its heads follow each other, each a multiple of 128 bytes:
//
//   key codes    units of `unit` channels (or coordinates) in their order, each a matrix of rows =
//   tokens
//                and columns = channels; a unit of 3 bits is its low two bits, then its high bit
//   key scales   float16 [HeadDim], in the order of key_element(); the sign of that of channel 0 names
//   the
//                KeySpace
//   key zeros    likewise
//   value codes  units of 16 tokens in their order, each a matrix of rows = channels and columns =
//   tokens value scales float16 [value_scales, Group], in the order of value_element(); plain values: as
//   many zeros
//                behind them
//
// 16-bit keys are tiles of A, rows = tokens: [token tile, channel tile]; 16-bit values tiles with rows =
// channels: [token tile, channel tile]. Neither has zeros or scales.

#include <cstddef>
#include <cstdint>

#include "squat/coding/coding.hpp"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// Where the scale (and zero) of column `i` of B stands among `count`: a lane reads those of its own in
/// one piece, {2t, 2t+1, 2t+8, 2t+9} of every 16.
__host__ __device__ constexpr int column_element(int count, int i) {
  return (i % 8 / 2 * (count / 16) + i / 16) * 4 + i % 16 / 8 * 2 + i % 2;
}
/// Of a channel of the keys.
template <int HeadDim>
__host__ __device__ constexpr int key_element(int channel) {
  return column_element(HeadDim, channel);
}
/// Of a token of the values.
template <int Group>
__host__ __device__ constexpr int value_element(int token) {
  return column_element(Group, token);
}

template <int HeadDimension, int GroupTokens, int KeyBitCount, int ValueBitCount>
struct PageLayout {
  static constexpr int HeadDim = HeadDimension, Group = GroupTokens;
  static constexpr int KeyBits = KeyBitCount, ValueBits = ValueBitCount;
  static_assert(HeadDim % 32 == 0 && HeadDim <= 256,
                "squat: on CUDA head_dim is a multiple of 32, at most 256");
  static_assert(Group == 32 || Group == 64 || Group == 128, "squat: on CUDA group is 32, 64 or 128");

  static constexpr int token_tiles = Group / 16, channel_tiles = HeadDim / 16;
  /// Channels of a unit of keys, as in allocation_unit().
  static constexpr int unit = HeadDim < 128 ? 8 : 16;
  static constexpr int key_units = HeadDim / unit;
  /// Channels of a group of plain values.
  static constexpr int value_group = 32;

  __host__ __device__ static constexpr int plane_bytes(int bits, int tiles, int columns) {
    return unit_words(bits, tiles, columns) * 4 * warp_lanes;
  }
  __host__ __device__ static constexpr int unit_bytes(int bits, int tiles, int columns) {
    return bits == 3 ? plane_bytes(2, tiles, columns) + plane_bytes(1, tiles, columns)
                     : plane_bytes(bits, tiles, columns);
  }
  /// Bytes of a unit of keys of that width; 0 for none.
  __host__ __device__ static constexpr int key_unit_bytes(int bits) {
    return bits == 0 ? 0 : unit_bytes(bits, token_tiles, unit);
  }
  /// Bytes of the values of 16 tokens.
  static constexpr int value_step_bytes =
      ValueBits == 16 ? HeadDim * 32 : unit_bytes(ValueBits, channel_tiles, 16);

  static constexpr int key_code_bytes =
      KeyBits == 16 ? Group * HeadDim * 2 : key_units * key_unit_bytes(KeyBits);
  static constexpr int key_scales = key_code_bytes;
  static constexpr int key_zeros = key_scales + (KeyBits == 16 ? 0 : HeadDim * 2);
  static constexpr int value_codes = key_zeros + (KeyBits == 16 ? 0 : HeadDim * 2);
  static constexpr int value_scales = value_codes + token_tiles * value_step_bytes;

  /// Scales a token has.
  __host__ __device__ static constexpr int scales_of_a_value(ValueCoding coding) {
    return ValueBits == 16 ? 0 : coding == ValueCoding::symmetric ? 1 : HeadDim / value_group;
  }
  __host__ __device__ static constexpr int value_zeros(ValueCoding coding) {
    return value_scales + scales_of_a_value(coding) * Group * 2;
  }
  __host__ __device__ static constexpr int head_bytes(ValueCoding coding) {
    const int end =
        value_zeros(coding) + (coding == ValueCoding::plain ? scales_of_a_value(coding) * Group * 2 : 0);
    return (end + 127) / 128 * 128;
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
