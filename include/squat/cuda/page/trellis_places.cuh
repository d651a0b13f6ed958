#pragma once

// Where trellis codes lie in a page (coding/trellis.hpp): a lane's words are nibbles of consecutive
// codes of rows of the trellis, the newest lowest, so that windows of eight rows are made of a word and
// those before it by a few bit operations (kernels/trellis_levels.cuh).
//
// Of keys a row runs along the tokens of a channel. Of 32 tokens, lane (g, t) has 4g to 4g + 3 of the
// columns that it has of scalar codes (code_places.cuh); nibbles of 2 bits are tokens 4g and 4g + 1 of
// each column, then 4g + 2 and 4g + 3, nibbles of 1 bit all four. What comes before them is the lane's
// before, of equal t.
//
// Of values a row runs along the channels of a token. Of 32 tokens, lane (g, t) has 8t to 8t + 7, in the
// order 0 1 4 5 2 3 6 7, and an eighth of the channels, from g HeadDim / 8 on: a word has two channels
// of 2 bits, or four of 1.
//
// Codes of 3 bits are a plane of their low two bits, then one of their high bit, as of 1 bit.
//
// A lane's rows of A are the tokens, and channels, that it has: tiles are as of scalar codes with tokens
// and channels in another order, which is that of scalar codes in such pages too (token_row(),
// channel_row()).

#include "squat/cuda/page/code_places.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// The row of a token among those of its page.
__host__ __device__ constexpr int token_row(int token) {
  return token / 32 * 32 + token % 4 * 8 + token % 32 / 4;
}
/// And back.
__host__ __device__ constexpr int row_token(int row) {
  return row / 32 * 32 + row % 8 * 4 + row % 32 / 8;
}
/// The row of a channel among a head's values.
__host__ __device__ constexpr int channel_row(int head_dim, int channel) {
  const int of_lane = head_dim / 8, own = channel % of_lane;
  return own / 2 * 16 + own % 2 * 8 + channel / of_lane;
}
/// And back.
__host__ __device__ constexpr int row_channel(int head_dim, int row) {
  return row % 8 * (head_dim / 8) + row / 16 * 2 + row % 16 / 8;
}

/// The code of (token, column) in a plane of 1 or 2 bits of a unit of keys.
__host__ __device__ constexpr CodePlace trellis_key_place(int bits, int columns, int token, int column) {
  const int lane = token % 32 / 4 * 4 + column % 8 / 2;
  const int index = columns == 16 ? column_byte(column) : column % 2;
  const int first = (token / 32 * warp_lanes + lane) * key_lane_bytes(bits, columns);
  const int bit = bits == 1 ? index * 4 + 3 - token % 4
                            : (token % 4 / 2 * (columns / 4) + index) * 4 + (1 - token % 2) * 2;
  return {first + bit / 8, bit % 8};
}

/// Words that a lane has of a plane of 32 tokens' values.
__host__ __device__ constexpr int trellis_value_words(int bits, int tiles) { return tiles * bits / 2; }

/// The code of (channel, token of 32) in a plane of 1 or 2 bits of values of `tiles` tiles.
__host__ __device__ constexpr CodePlace trellis_value_place(int bits, int tiles, int channel,
                                                            int token) {
  const int own = channel % (2 * tiles), in_nibble = 4 / bits;
  const int lane = channel / (2 * tiles) * 4 + token / 8;
  const int nibble = token % 2 + token % 8 / 4 * 2 + token % 4 / 2 * 4;
  const int bit = nibble * 4 + (in_nibble - 1 - own % in_nibble) * bits;
  const int word = lane_word(trellis_value_words(bits, tiles), lane, own / in_nibble);
  return {word * 4 + bit / 8, bit % 8};
}

}  // namespace squat::cuda
