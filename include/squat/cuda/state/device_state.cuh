#pragma once

// What the kernels know of sequences and codings: structures in device memory. The host keeps a mirror
// of the counts and writes them whenever it does more than a decode step; a decode step's kernels count
// on their own, so that a captured graph of it may be replayed.

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

namespace squat::cuda {

/// A page of the table of a sequence and layer, see PageView.
struct PageEntry {
  const std::uint8_t *data;  ///< null: not there yet
  long long base;            ///< position that its keys are turned back by
  std::int32_t first;        ///< the first of its tokens that counts
  std::int32_t tokens;       ///< how many count
  std::int32_t row;          ///< row of its tile that its first token (of all) stands in
  std::int32_t before;       ///< tokens of the sequence before it, sinks included
  std::int32_t tile_page;    ///< pages of the same base right before it in the table
  std::int32_t unused;
};

/// One sequence's tokens in one layer: sinks, pages, tail.
struct LayerState {
  std::uint16_t *exact;     ///< blocks of 16 tokens: [sink_blocks] (BlockLayout), then [tail_blocks]
  std::uint16_t *overflow;  ///< further blocks, for tokens of a call that the tail has no slot for
  PageEntry *pages;         ///< of page_capacity entries
  long long position;       ///< rotary position of the next token
  std::int32_t sinks;       ///< tokens
  std::int32_t page_count;
  std::int32_t paged_tokens;  ///< of all pages together
  std::int32_t tail;          ///< tokens
  std::int32_t tail_first;    ///< slot of the oldest in the ring, a multiple of 16
  std::int32_t sink_blocks;
  std::int32_t tail_blocks;
  std::int32_t page_capacity;
  std::int32_t coding;     ///< index into the coding tables
  std::int32_t byte_tail;  ///< blocks of the tail are of bytes (ByteBlock), else exact

  __host__ __device__ int length() const { return sinks + paged_tokens + tail; }
};

/// One sequence's part of a call.
struct BatchEntry {
  LayerState *state;
  std::int32_t first_row;  ///< of the call's tensors
  std::int32_t tokens;
  std::int32_t sinks;       ///< how many of them became sinks, where the call's host appended them
  std::int32_t causal = 1;  ///< see SequenceCall
  std::uint16_t *unpacked = nullptr;  ///< the tail as exact blocks, one behind the other, where
                                      ///< attention of the call is to meet these instead of bytes

  bool operator==(const BatchEntry &) const = default;
};

/// A view of [tokens, heads, head_dim] in device memory, strides in elements.
template <class Scalar>
struct DeviceTensor {
  Scalar *data;
  long long token_stride;
  long long head_stride;

  __device__ Scalar *row(long long token, int head) const {
    return data + token * token_stride + head * head_stride;
  }
};

inline constexpr int most_units = 36;  // of the keys of 576 channels

/// Tiles of 16 modes of a mean key at most: 512 channels that turn have 84 modes in 256 rows of a tile.
__host__ __device__ constexpr int most_mode_tiles(int head_dim) { return head_dim > 256 ? 6 : 4; }

/// Where the codes of a head begin in a page whose heads share bits, behind which its values follow and
/// then their scales.
struct SharedPlace {
  std::int32_t codes;      ///< a byte of the page
  std::int32_t key_bytes;  ///< of the keys' codes
  std::int32_t value_bits;
};

/// What the keys of one KV head are coded with. Matrices that queries meet are tiles of A in float16.
struct HeadTables {
  // What queries meet.
  const uint4 *basis;  ///< A^-T, [HeadDim / 16, HeadDim / 16] tiles; null: no basis
  const uint4
      *projection;  ///< onto the modes of the mean key, [mode_tiles, HeadDim / 16] tiles; null: no mean
  float projection_unit;  ///< a power of two: the projection is so many times the tiles' numbers, whose
                          ///< rows have absolute sums below 2^15
  std::int32_t mode_tiles;
  std::uint8_t widths[most_units];  ///< of the units of coordinates, falling, see BitAllocation
  std::int32_t eight_bit_units;     ///< of these, so many
  std::int32_t four_bit_units;
  std::int32_t three_bit_units;
  std::int32_t two_bit_units;
  std::int32_t one_bit_units;

  // What keys meet when they are packed, float.
  const float *to_basis;      ///< A, [coordinate, channel]
  const float *metric;        ///< C's diagonal, [channel]
  const float *mean;          ///< before the rotary embedding, [channel]; null: none
  const float *value_mean;    ///< rotated as values are, [HeadDim]; null: none
  const std::int32_t *order;  ///< orthogonal rounding: channels in their order; null: none
  const float *feedback;      ///< F, [HeadDim, HeadDim], in that order
  std::int32_t block;         ///< channels rounded together

  // Where heads share bits.
  SharedPlace places[2];  ///< of plain pages, and of those in the basis
  float key_weight;       ///< what the metric's errors count beside those of other heads
};

/// Turns a position of an inverse frequency, radians, in 2^-64; whole turns are lost.
inline std::uint64_t turns_of(float inverse_frequency) {
  constexpr double inverse_turn = 0.15915494309189535;  // 1 / 2 pi
  const double turns = static_cast<double>(inverse_frequency) * inverse_turn;
  return static_cast<std::uint64_t>((turns - std::floor(turns)) * 0x1p64);
}

/// What all heads of a layer share: the rotary embedding and the tile frame.
struct TileTables {
  const float *inverse_frequencies;  ///< [pairs]
  const std::uint64_t *turns;  ///< the same in 2^-64 of a turn a position, see turns_of(); [pairs], and
                               ///< memory up to an even number
  std::int32_t pairs;
  std::int32_t interleaved;  ///< channels 2 i and 2 i + 1 turn together, else i and i + pairs
  std::int32_t frame;        ///< rows of a tile; 0: keys stay in the frame they come in
  std::int32_t mode_tiles;
  const uint4
      *mode_rows;  ///< [mode_tiles, frame / 16] tiles of A, rows = rows of the tile, columns = modes
  const float *angles;  ///< cos and sin, [2 * pairs, frame], as TileFrame has them
};

/// A layer's coding.
struct CodingTables {
  const HeadTables *heads;  ///< [kv_heads]
  TileTables tiles;
  std::int32_t learnt;  ///< pages may be packed

  // Where heads share bits.
  std::int32_t shared;          ///< they do: all heads of a page are coded in one space
  std::int32_t plain_key_bits;  ///< of pages that are not in the basis
  std::int32_t plain_fits;      ///< there may be such pages
  float value_gain;             ///< by how much values of a page err less in the basis
};

}  // namespace squat::cuda
