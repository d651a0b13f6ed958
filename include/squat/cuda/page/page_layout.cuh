#pragma once

// The bytes of a page on the GPU: what the kernels read fastest, in the order of matrix fragments
// (code_places.cuh, fragments.cuh).
//
// A page holds `Group` tokens of one layer. Its heads follow each other, each a multiple of 32 bytes:
//
//   key scales   float16 [HeadDim], in the order of key_element(); the sign of that of channel 0
//                names the KeySpace, that of channel 1 says that codes of up to 3 bits are trellis
//                codes, that of channel 2 that values are coded about their mean
//   key zeros    likewise
//   key codes    units of `unit` channels (or coordinates) in their order; a unit of 3 bits is its
//                low two bits, then its high bit
//   value codes  steps of 16 tokens in their order; one of 3 bits likewise
//   value scales float16 [value_scales, Group], in the order of value_element(); plain values: as many
//                zeros behind them
//
// 16-bit keys are tiles of A, rows = tokens: [token tile, channel tile]; 16-bit values tiles with rows =
// channels: [token tile, channel tile]. Neither has zeros or scales.
//
// Where heads share the bits of a page (SharesBits), widths differ by head, and by whether the page is
// in the basis (SharedPlace). Such a page begins with a float a head, by how much its keys err less in
// the basis, then come the keys' scales and zeros of all heads, then codes and values' scales of all
// heads.

#include <cstddef>
#include <cstdint>

#include "squat/coding/coding.hpp"
#include "squat/coding/trellis.hpp"
#include "squat/cuda/page/code_places.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/trellis_places.cuh"

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

/// Bytes of the values of 16 tokens.
__host__ __device__ constexpr int value_step_bytes(int bits, int tiles) {
  return bits == 16  ? tiles * 512
         : bits == 3 ? value_plane_bytes(2, tiles) + value_plane_bytes(1, tiles)
                     : value_plane_bytes(bits, tiles);
}

// Of pages of 128 tokens whose heads share bits: where scales and zeros of a head's keys begin, behind
// the last head codes; bytes of a head's values, and of their scales behind them.
__host__ __device__ constexpr int shared_parameters(int head_dim, int head, int kv_heads) {
  return (kv_heads * 4 + 31) / 32 * 32 + head * head_dim * 4;
}
__host__ __device__ constexpr int shared_value_bytes(int head_dim, int bits) {
  return 8 * value_step_bytes(bits, head_dim / 16);
}
inline constexpr int shared_value_scale_bytes = 256;
/// Of a page whose codes take so many.
constexpr std::size_t shared_page_bytes(int head_dim, int kv_heads, std::size_t code_bytes) {
  return static_cast<std::size_t>(shared_parameters(head_dim, kv_heads, kv_heads) +
                                  kv_heads * shared_value_scale_bytes) +
         code_bytes;
}

/// SharesBits: heads share the bits of a page, KeyBits and ValueBits on average. CodeKind: trellis codes
/// are those of up to 3 bits of values, and of keys in the basis where a page says so.
template <int HeadDimension, int GroupTokens, int KeyBitCount, int ValueBitCount,
          bool SharesBits = false, Codes CodeKind = Codes::scalar>
struct PageLayout {
  static constexpr int HeadDim = HeadDimension, Group = GroupTokens;
  static constexpr int KeyBits = KeyBitCount, ValueBits = ValueBitCount;
  static constexpr bool shares_bits = SharesBits, trellis = CodeKind == Codes::trellis;
  /// Whether there are kernels for plain values.
  static constexpr bool has_plain_values = !shares_bits && !trellis;
  static_assert(HeadDim % 32 == 0 && HeadDim <= 576,
                "squat: on CUDA head_dim is a multiple of 32, at most 576");
  static_assert(Group == 32 || Group == 64 || Group == 128, "squat: on CUDA group is 32, 64 or 128");
  static_assert(fits_kernels(HeadDim, Group), "squat: on CUDA such heads have pages of fewer tokens");

  static_assert(HeadDim <= 256 || (KeyBits == 16) == (ValueBits == 16),
                "squat: on CUDA such heads have keys and values that are both packed, or both exact");
  static_assert(
      !SharesBits || (HeadDim % 64 == 0 && Group == 128 && KeyBits <= 4 && ValueBits <= 4),
      "squat: on CUDA heads that share bits have multiples of 64 channels, pages of 128 tokens, "
      "and up to 4 bits");

  static_assert(!trellis || (HeadDim % 64 == 0 && HeadDim <= 192 && KeyBits <= 4 && ValueBits <= 4),
                "squat: on CUDA heads of trellis codes have 64, 128 or 192 channels and up to 4 bits");

  static constexpr int token_tiles = Group / 16, channel_tiles = HeadDim / 16;
  /// Channels of a unit of keys, as in allocation_unit().
  static constexpr int unit = HeadDim < 128 ? 8 : 16;
  static constexpr int key_units = HeadDim / unit;
  /// Channels of a group of plain values.
  static constexpr int value_group = 32;

  /// Bytes of a unit of keys of that width; 0 for none.
  __host__ __device__ static constexpr int key_unit_bytes(int bits) { return Group * unit * bits / 8; }
  /// Bytes of the values of 16 tokens.
  static constexpr int value_step_bytes = cuda::value_step_bytes(ValueBits, channel_tiles);

  static constexpr int key_scales = 0;
  static constexpr int key_zeros = HeadDim * 2;
  static constexpr int key_codes = KeyBits == 16 ? 0 : key_zeros + HeadDim * 2;
  static constexpr int value_codes = key_codes + key_units * key_unit_bytes(KeyBits);
  static constexpr int value_scales = value_codes + token_tiles * value_step_bytes;

  // ---- the order of tokens and channels

  /// The row of a token, as codes and the rows of the mean's modes have them; and back.
  __host__ __device__ static constexpr int token_row(int token) {
    return trellis ? cuda::token_row(token) : token;
  }
  __host__ __device__ static constexpr int row_token(int row) {
    return trellis ? cuda::row_token(row) : row;
  }
  /// The row of a channel of values; and back.
  __host__ __device__ static constexpr int channel_row(int channel) {
    return trellis ? cuda::channel_row(HeadDim, channel) : channel;
  }
  __host__ __device__ static constexpr int row_channel(int row) {
    return trellis ? cuda::row_channel(HeadDim, row) : row;
  }

  // ---- codes

  /// What codes of so many bits of symmetric values are.
  __host__ __device__ static constexpr Codes value_codes_of(int bits) {
    return trellis && bits <= most_trellis_bits ? Codes::trellis : Codes::scalar;
  }
  /// And of keys, of a head whose scales these bytes have.
  __host__ __device__ static Codes key_codes_of(const std::uint8_t *head, int bits) {
    if constexpr (!trellis) return Codes::scalar;
    const bool says_so = (head[key_scales + trellis_byte] & 0x80u) != 0;
    return says_so && bits <= most_trellis_bits ? Codes::trellis : Codes::scalar;
  }
  static constexpr int trellis_byte = key_element(1) * 2 + 1;

  /// Where the code of (token, column) of a unit of keys lies.
  __host__ __device__ static constexpr CodePlaces key_places(Codes kind, int bits, int token,
                                                             int column) {
    const auto place = [&](int of_plane) {
      return kind == Codes::trellis ? trellis_key_place(of_plane, unit, token, column)
                                    : key_place(of_plane, unit, token_row(token), column);
    };
    CodePlaces at{.low_bits = bits == 3 ? 2 : bits, .has_high = bits == 3};
    at.low = place(at.low_bits);
    at.high = place(1);
    at.high.byte += key_unit_bytes(2);
    return at;
  }
  /// The same of (channel, token) of values, from the first of their bytes on.
  __host__ __device__ static constexpr CodePlaces value_places(Codes kind, int bits, int channel,
                                                               int token) {
    const bool is_trellis = kind == Codes::trellis;
    const int row = token_row(token);
    const auto place = [&](int of_plane) {
      return is_trellis ? trellis_value_place(of_plane, channel_tiles, channel, token % 32)
                        : value_place(of_plane, channel_tiles, channel_row(channel), row % 16);
    };
    CodePlaces at{.low_bits = bits == 3 ? 2 : bits, .has_high = bits == 3};
    const int steps = is_trellis ? row / 32 * 2 : row / 16;  // that are before it
    const int first = steps * cuda::value_step_bytes(bits, channel_tiles);
    at.low = place(at.low_bits);
    at.low.byte += first;
    at.high = place(1);
    at.high.byte += first + value_plane_bytes(2, channel_tiles) * (is_trellis ? 2 : 1);
    return at;
  }
  /// Bytes of the values of 32 tokens.
  __host__ __device__ static constexpr int value_slice_bytes(int bits) {
    return 2 * cuda::value_step_bytes(bits, channel_tiles);
  }

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

  // ---- where heads share bits

  /// Where scales and zeros of a head's keys begin in a page.
  __host__ __device__ static constexpr int parameters(int head, int kv_heads) {
    return shared_parameters(HeadDim, head, kv_heads);
  }
  /// Bytes of a head's values, and of their scales behind them.
  __host__ __device__ static constexpr int value_bytes(int bits) {
    return shared_value_bytes(HeadDim, bits);
  }
  static constexpr int value_scale_bytes = shared_value_scale_bytes;
  /// Bytes of a head's codes and values' scales at most, see ShareChoices::most_key_bytes().
  static constexpr int most_code_bytes =
      2 * (KeyBits + ValueBits) * HeadDim * Group / 8 + value_scale_bytes;
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
