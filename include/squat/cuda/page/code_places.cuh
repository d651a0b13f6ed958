#pragma once

// Where codes lie in a page: as the bytes that matrix A of mma.sync.m16n8k32 takes (fragments.cuh), so
// that a mask, and here and there a shift, makes a register of A of a word of a page.
//
// The four bytes of a word are columns of a lane: 2t, 2t + 8, 2t + 1, 2t + 9 of 16. Where several codes
// share a byte, each is a row of its own, at its place.
//
//   keys    rows = tokens, columns = channels. A unit of 16 channels is slices of 32 tokens; of each,
//           lane (g, t) has rows g + 8 r, r = 0 to 3. Place r for codes of 2 bits; places r / 2 of
//           word r % 2 for 4 bits; word r for 8 bits. A plane of 1 bit is a nibble a column, place r.
//           Units of 8 channels (heads of fewer than 128) have only the columns 2t and 2t + 1.
//   values  rows = channels, columns = tokens. A step of 16 tokens is all tiles of 16 channels; of each,
//           lane (g, t) has rows g and g + 8, `half` 0 and 1. A word is one half of several tiles, each
//           at its place; halves share a word where too few tiles are left.
//
// Codes of 3 bits are a plane of their low two bits, then one of their high bit.

#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// Where a code is: the byte of its plane, and the bit.
struct CodePlace {
  int byte;
  int bit;
};

/// Of the columns of 16, the byte of a lane's word.
__host__ __device__ constexpr int column_byte(int column) { return column % 2 * 2 + column % 16 / 8; }

/// Bytes that a lane has of 32 tokens of a unit of `columns` channels.
__host__ __device__ constexpr int key_lane_bytes(int bits, int columns) { return columns * bits / 8; }

/// The code of (token, column) in a plane of 1, 2, 4 or 8 bits of a unit of keys.
__host__ __device__ constexpr CodePlace key_place(int bits, int columns, int token, int column) {
  const int lane = token % 8 * 4 + column % 8 / 2, row = token % 32 / 8;
  const int index = columns == 16 ? column_byte(column) : column % 2, of_row = columns / 4;
  const int first = (token / 32 * warp_lanes + lane) * key_lane_bytes(bits, columns);
  if (bits == 1) return {first + index / 2, index % 2 * 4 + row};
  if (bits == 2) return {first + index, row * 2};
  if (bits == 4) return {first + row % 2 * of_row + index, row / 2 * 4};
  return {first + row * of_row + index, 0};
}

/// Words that a lane has of a plane of 16 tokens' values.
__host__ __device__ constexpr int value_words(int bits, int tiles) { return (tiles * bits + 3) / 4; }
__host__ __device__ constexpr int value_plane_bytes(int bits, int tiles) {
  return value_words(bits, tiles) * 4 * warp_lanes;
}

/// Where word `word` of a lane stands among a plane's, which has `words` a lane: pieces of 16 bytes of
/// all lanes follow each other, so that a warp reads without bank conflicts.
__host__ __device__ constexpr int lane_word(int words, int lane, int word) {
  return words % 4 == 0 ? (word / 4 * warp_lanes + lane) * 4 + word % 4 : lane * words + word;
}

/// A lane's word and place of one half of a tile of values.
struct ValuePlace {
  int word;
  int place;
};
__host__ __device__ constexpr ValuePlace value_word_place(int bits, int tiles, int tile, int half) {
  const int places = 8 / bits, group = tile / places, left = tiles - group * places;
  if (2 * left <= places) return {2 * group, half * places / 2 + tile % places};  // halves share a word
  return {2 * group + half, tile % places};
}

/// The code of (channel, token of 16) in a plane of 1, 2, 4 or 8 bits of values of `tiles` tiles.
__host__ __device__ constexpr CodePlace value_place(int bits, int tiles, int channel, int token) {
  const ValuePlace at = value_word_place(bits, tiles, channel / 16, channel % 16 / 8);
  const int lane = channel % 8 * 4 + token % 8 / 2;
  return {lane_word(value_words(bits, tiles), lane, at.word) * 4 + column_byte(token), at.place * bits};
}

/// Where a code lies that may be in two planes: its low `low_bits` bits at `low`, one more at `high`.
struct CodePlaces {
  int low_bits;
  bool has_high;
  CodePlace low{}, high{};
};

__host__ __device__ constexpr int read_code(const unsigned char *codes, const CodePlaces &at) {
  const int low = codes[at.low.byte] >> at.low.bit & ((1 << at.low_bits) - 1);
  return at.has_high ? low | (codes[at.high.byte] >> at.high.bit & 1) << at.low_bits : low;
}

/// Adds a code to bytes that have 0 there.
__host__ __device__ constexpr void add_code(unsigned char *codes, const CodePlaces &at, int code) {
  const auto add = [&](CodePlace place, int bits) {
    codes[place.byte] = static_cast<unsigned char>(codes[place.byte] | bits << place.bit);
  };
  add(at.low, code & ((1 << at.low_bits) - 1));
  if (at.has_high) add(at.high, code >> at.low_bits);
}

}  // namespace squat::cuda
