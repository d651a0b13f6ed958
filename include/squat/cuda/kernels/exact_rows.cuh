#pragma once

// Exact rows: what arrives, moves and turns.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/cuda/kernels/elements.cuh"
#include "squat/cuda/kernels/pack_call.cuh"
#include "squat/cuda/kernels/rotary.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"
#include "squat/cuda/state/exact_slots.cuh"

namespace squat::cuda {

/// Rows of a call's tensors, to be rounded to T.
template <class T, class S>
struct TensorRows {
  DeviceTensor<const S> k, v;
  long long first;

  __device__ Word key_pair(int token, int head, int channel) const {
    const S *row = k.row(first + token, head) + channel;
    return word_of<T>(load_element(row), load_element(row + 1));
  }
  __device__ std::uint16_t value(int token, int head, int channel) const {
    return element_bits<T>(load_element(v.row(first + token, head) + channel));
  }
};

/// Rows that are exact already, from token `first` on.
template <int HeadDim>
struct SlotRows {
  ExactSlots slots;
  int first;

  __device__ Word key_pair(int token, int head, int channel) const {
    return *reinterpret_cast<const Word *>(slots.block<HeadDim>(head, first + token) +
                                           BlockLayout<HeadDim>::key((first + token) % 16, channel));
  }
  __device__ std::uint16_t value(int token, int head, int channel) const {
    return slots.block<HeadDim>(
        head, first + token)[BlockLayout<HeadDim>::value((first + token) % 16, channel)];
  }
};

/// Writes of tokens 0 .. count - 1 of `rows`, which become the tokens from `first` on, those that stand
/// in the block of token `block` (a multiple of 16). A warp fills one tile of keys and one of values, 16
/// tokens x 16 channels. A tile that is filled whole is written in pieces of 16 bytes.
template <int HeadDim, class Rows>
__device__ void write_tile(const Rows &rows, int count, ExactSlots to, int first, int block, int head,
                           int tile) {
  using Block = BlockLayout<HeadDim>;
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  const int token = block - first;  // of `rows`, in the block's first row
  std::uint16_t *elements = to.block<HeadDim>(head, block);
  auto *keys = reinterpret_cast<Word *>(elements + tile * 256) + lane * 4;
  auto *values = reinterpret_cast<Word *>(elements + Block::part_elements + tile * 256) + lane * 4;
  const auto inside = [&](int i) { return i >= 0 && i < count; };
  Word key[4], value[4];
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    const int row = g + part % 2 * 8, column = 2 * t + part / 2 * 8;
    key[part] = inside(token + row) ? rows.key_pair(token + row, head, tile * 16 + column) : 0;
    value[part] = 0;
    for (int side = 0; side < 2; ++side) {
      if (!inside(token + column + side)) continue;
      value[part] |= static_cast<Word>(rows.value(token + column + side, head, tile * 16 + row))
                     << (16 * side);
    }
  }
  if (inside(token) && inside(token + 15)) {
    *reinterpret_cast<uint4 *>(keys) = {key[0], key[1], key[2], key[3]};
    *reinterpret_cast<uint4 *>(values) = {value[0], value[1], value[2], value[3]};
    return;
  }
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    if (inside(token + g + part % 2 * 8)) keys[part] = key[part];
    for (int side = 0; side < 2; ++side) {
      if (!inside(token + 2 * t + part / 2 * 8 + side)) continue;
      reinterpret_cast<std::uint16_t *>(values + part)[side] =
          static_cast<std::uint16_t>(value[part] >> (16 * side));
    }
  }
}

/// Calls visit(tile) for the tiles of channels of a warp.
template <int HeadDim, class Visit>
__device__ inline void for_each_tile(Visit &&visit) {
#pragma unroll
  for (int i = 0; i < tiles_of_warp(HeadDim); ++i)
    visit(i * channel_warps(HeadDim) + static_cast<int>(threadIdx.y));
}

/// Writes the rows of every entry to its sinks and, where it is exact, to its tail, as T; the state
/// counts them already. Grid: blocks of 16 tokens that an entry touches, KV heads, entries.
template <int HeadDim, class T, class S>
__global__ void append_rows(const BatchEntry *batch, DeviceTensor<const S> k, DeviceTensor<const S> v) {
  const BatchEntry entry = batch[blockIdx.z];
  const LayerState &state = *entry.state;
  const int heads = static_cast<int>(gridDim.y), head = static_cast<int>(blockIdx.y);
  int index = static_cast<int>(blockIdx.x);
  const auto write = [&](ExactSlots to, int first, int row, int count) {
    const int blocks = count == 0 ? 0 : (first % 16 + count + 15) / 16;
    if (index >= 0 && index < blocks) {
      for_each_tile<HeadDim>([&](int tile) {
        write_tile<HeadDim>(TensorRows<T, S>{k, v, entry.first_row + row}, count, to, first,
                            first / 16 * 16 + index * 16, head, tile);
      });
    }
    index -= blocks;
  };
  const int behind = entry.tokens - entry.sinks;  // sinks
  write(sink_slots<HeadDim>(state, heads), state.sinks - entry.sinks, 0, entry.sinks);
  if (state.byte_tail != 0) return;
  write(tail_slots<HeadDim>(state, heads), state.tail - behind, entry.sinks, behind);
}

/// most_tokens: of an entry.
template <int HeadDim, class T, class S>
void launch_append_rows(const BatchEntry *batch, int entries, int most_tokens, int kv_heads,
                        DeviceTensor<const S> k, DeviceTensor<const S> v, cudaStream_t stream) {
  if (entries == 0 || most_tokens == 0) return;
  // Sinks and tail may each begin and end within a block.
  const dim3 grid(static_cast<unsigned>(token_blocks(most_tokens) + 3), static_cast<unsigned>(kv_heads),
                  static_cast<unsigned>(entries));
  append_rows<HeadDim, T, S><<<grid, dim3(warp_lanes, channel_warps(HeadDim)), 0, stream>>>(batch, k, v);
}

/// Moves what packing left of the tokens behind the ring into it: whole blocks, to slots whose tokens
/// are in pages by now. Grid: blocks of 16 tokens behind the ring, entries.
template <int HeadDim, int Group, class Slots>
__global__ void keep_overflow(PackCall call) {
  const LayerState &state = *call.batch[blockIdx.y].state;
  const Slots tail = tail_slots<HeadDim, Slots>(state, call.kv_heads);
  const int packed = due_pages(state, call, Group) * Group;
  const int token = tail.capacity + static_cast<int>(blockIdx.x) * 16;
  if (token >= state.tail || token < packed) return;
  const auto *from = reinterpret_cast<const uint4 *>(tail.template block<HeadDim>(0, token));
  auto *to = reinterpret_cast<uint4 *>(tail.template block<HeadDim>(0, token % tail.capacity));
  const int pieces =
      static_cast<int>(call.kv_heads * Slots::template block_bytes<HeadDim>() / sizeof(uint4));
  for (int i = static_cast<int>(threadIdx.x); i < pieces; i += static_cast<int>(blockDim.x))
    to[i] = from[i];
}

/// blocks: behind a ring at most.
template <int HeadDim, int Group, class Slots = ExactSlots>
void launch_keep_overflow(const PackCall &call, int blocks, cudaStream_t stream) {
  if (call.entries == 0 || blocks == 0) return;
  keep_overflow<HeadDim, Group, Slots>
      <<<dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(call.entries)), 256, 0, stream>>>(
          call);
}

/// Grid: blocks of 16 tokens that are touched, KV heads.
template <int HeadDim>
__global__ void copy_rows(ExactSlots from, int from_first, int count, ExactSlots to, int to_first) {
  for_each_tile<HeadDim>([&](int tile) {
    write_tile<HeadDim>(SlotRows<HeadDim>{from, from_first}, count, to, to_first,
                        to_first / 16 * 16 + static_cast<int>(blockIdx.x) * 16,
                        static_cast<int>(blockIdx.y), tile);
  });
}

/// Copies the tokens [from_first, from_first + count) of one buffer to those from to_first on of
/// another, which must not share slots with them.
template <int HeadDim>
void launch_copy_rows(ExactSlots from, int from_first, int count, int kv_heads, ExactSlots to,
                      int to_first, cudaStream_t stream) {
  if (count == 0) return;
  const dim3 grid(static_cast<unsigned>((to_first % 16 + count + 15) / 16),
                  static_cast<unsigned>(kv_heads));
  copy_rows<HeadDim><<<grid, dim3(warp_lanes, channel_warps(HeadDim)), 0, stream>>>(from, from_first,
                                                                                    count, to, to_first);
}

/// Turns the keys of the tokens [first, first + count) by `by` positions, as the rotary embedding of
/// those tables does. A block turns 16 tokens of a head; its angles are worked out once.
template <int HeadDim, class T>
__global__ void turn_rows(ExactSlots slots, int first, int count, TileTables tables, long long by) {
  __shared__ float2 angles[HeadDim / 2];
  make_turn(tables, by, angles);
  __syncthreads();
  const int head = static_cast<int>(blockIdx.y), begin = static_cast<int>(blockIdx.x) * 16;
  const int tokens = min(16, count - begin);
  for (int i = static_cast<int>(threadIdx.x); i < tokens * tables.pairs;
       i += static_cast<int>(blockDim.x)) {
    const int token = first + begin + i / tables.pairs, pair = i % tables.pairs;
    const int2 channels = pair_channels(tables, pair);
    std::uint16_t *block = slots.block<HeadDim>(head, token);
    std::uint16_t &a = block[BlockLayout<HeadDim>::key(token % 16, channels.x)];
    std::uint16_t &b = block[BlockLayout<HeadDim>::key(token % 16, channels.y)];
    const float2 turned = turn_pair(angles[pair], {element_value<T>(a), element_value<T>(b)});
    a = element_bits<T>(turned.x);
    b = element_bits<T>(turned.y);
  }
}

template <int HeadDim, class T>
void launch_turn_rows(ExactSlots slots, int first, int count, int kv_heads, const TileTables &tables,
                      long long by, cudaStream_t stream) {
  if (count == 0 || tables.pairs == 0) return;
  const dim3 grid(static_cast<unsigned>((count + 15) / 16), static_cast<unsigned>(kv_heads));
  turn_rows<HeadDim, T><<<grid, 256, 0, stream>>>(slots, first, count, tables, by);
}

}  // namespace squat::cuda
