#pragma once

// Exact rows: what arrives, moves and turns, and the counts of a decode step.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "squat/cuda/device_state.cuh"
#include "squat/cuda/elements.cuh"
#include "squat/cuda/exact_slots.cuh"
#include "squat/cuda/pack_call.cuh"
#include "squat/cuda/page_layout.cuh"
#include "squat/cuda/rotary.cuh"

namespace squat::cuda {

/// What a decode step cannot throw: bits of a word in device memory, which stay set.
enum StepError : std::uint32_t {
  bad_element = 1,  ///< of k or v, not finite or out of float16's range: became 0
  tail_full = 2,    ///< a token had no slot: dropped
};

// ---- one token a sequence

/// Appends row `first_row` of k and v to the tail of every entry, and counts it. One block an entry, two
/// channels a thread at a time; 2 kv_heads HeadDim elements read once, written once as T. All threads
/// read the counts before the barrier behind which one changes them.
template <int HeadDim, class T, class S>
__global__ void append_step(const BatchEntry *batch, int kv_heads, DeviceTensor<const S> k,
                            DeviceTensor<const S> v, std::uint32_t *errors) {
  using Block = BlockLayout<HeadDim>;
  const BatchEntry entry = batch[blockIdx.x];
  LayerState &state = *entry.state;
  const ExactSlots tail = tail_slots(state);
  const bool room = state.tail < tail.capacity;
  bool bad = false;
  const auto checked = [&](float x) {
    if (in_range(x)) return x;
    bad = true;
    return 0.0f;
  };
  if (room) {
    const int slot = tail.slot(state.tail);
    for (int i = static_cast<int>(threadIdx.x); i < kv_heads * (HeadDim / 2);
         i += static_cast<int>(blockDim.x)) {
      const int head = i / (HeadDim / 2), channel = i % (HeadDim / 2) * 2;
      std::uint16_t *block = tail.block<HeadDim>(head, slot);
      const S *key = k.row(entry.first_row, head) + channel,
              *value = v.row(entry.first_row, head) + channel;
      const float a = checked(load_element(key)), b = checked(load_element(key + 1));
      *reinterpret_cast<Word *>(block + Block::key(slot % 16, channel)) = word_of<T>(a, b);
      block[Block::value(slot % 16, channel)] = element_bits<T>(checked(load_element(value)));
      block[Block::value(slot % 16, channel + 1)] = element_bits<T>(checked(load_element(value + 1)));
    }
  }
  if (bad) atomicOr(errors, bad_element);
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (room) {
    ++state.tail;
    ++state.position;
  } else {
    atomicOr(errors, tail_full);
  }
}

template <int HeadDim, class T, class S>
void launch_append_step(const BatchEntry *batch, int entries, int kv_heads, DeviceTensor<const S> k,
                        DeviceTensor<const S> v, std::uint32_t *errors, cudaStream_t stream) {
  if (entries == 0) return;
  append_step<HeadDim, T, S><<<entries, 512, 0, stream>>>(batch, kv_heads, k, v, errors);
}

/// Counts what the packing kernels of the same call packed. One thread an entry.
template <int Group>
__global__ void finish_step(PackCall call) {
  const int entry = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (entry >= call.entries) return;
  LayerState &state = *call.batch[entry].state;
  int pages = 0;
  while (due_page(state, call, pages, Group) != nullptr) ++pages;
  if (pages == 0) return;
  state.page_count += pages;
  state.paged_tokens += pages * Group;
  state.tail -= pages * Group;
  state.tail_first = (state.tail_first + pages * Group) % (state.tail_blocks * 16);
}

template <int Group>
void launch_finish_step(const PackCall &call, cudaStream_t stream) {
  if (call.entries == 0) return;
  finish_step<Group><<<(call.entries + 127) / 128, 128, 0, stream>>>(call);
}

// ---- rows of one sequence

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
    const int slot = slots.slot(first + token);
    return *reinterpret_cast<const Word *>(slots.block<HeadDim>(head, slot) +
                                           BlockLayout<HeadDim>::key(slot % 16, channel));
  }
  __device__ std::uint16_t value(int token, int head, int channel) const {
    const int slot = slots.slot(first + token);
    return slots.block<HeadDim>(head, slot)[BlockLayout<HeadDim>::value(slot % 16, channel)];
  }
};

/// Writes tokens 0 .. count - 1 of `rows` to the slots of the tokens from `first` on. A warp fills one
/// tile of keys and one of values, 16 tokens x 16 channels: blocks of warps over [channel tiles, heads],
/// grid over the blocks of 16 slots that are touched. A tile that is filled whole is written in pieces
/// of 16 bytes.
template <int HeadDim, class Rows>
__global__ void write_rows(Rows rows, int count, ExactSlots to, int first) {
  using Block = BlockLayout<HeadDim>;
  const int tile = static_cast<int>(threadIdx.y), head = static_cast<int>(blockIdx.y);
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  const int begin = to.slot(first),
            slot = (begin / 16 * 16 + static_cast<int>(blockIdx.x) * 16) % to.capacity;
  const int token = static_cast<int>(blockIdx.x) * 16 - begin % 16;  // in the block's first slot
  std::uint16_t *block = to.block<HeadDim>(head, slot);
  auto *keys = reinterpret_cast<Word *>(block + tile * 256) + lane * 4;
  auto *values = reinterpret_cast<Word *>(block + Block::part_elements + tile * 256) + lane * 4;
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

template <int HeadDim, class Rows>
void launch_write_rows(const Rows &rows, int count, int kv_heads, ExactSlots to, int first,
                       cudaStream_t stream) {
  if (count == 0) return;
  const int blocks = (to.slot(first) % 16 + count + 15) / 16;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(kv_heads)),
      warps(warp_lanes, HeadDim / 16);
  write_rows<HeadDim><<<grid, warps, 0, stream>>>(rows, count, to, first);
}

/// Writes the rows [first_row, first_row + count) of k and v to the tokens from `first` on of `to`;
/// nothing is counted.
template <int HeadDim, class T, class S>
void launch_append_rows(DeviceTensor<const S> k, DeviceTensor<const S> v, long long first_row, int count,
                        int kv_heads, ExactSlots to, int first, cudaStream_t stream) {
  launch_write_rows<HeadDim>(TensorRows<T, S>{k, v, first_row}, count, kv_heads, to, first, stream);
}

/// Copies the tokens [from_first, from_first + count) of one buffer to those from to_first on of
/// another, which must not share slots with them.
template <int HeadDim>
void launch_copy_rows(ExactSlots from, int from_first, int count, int kv_heads, ExactSlots to,
                      int to_first, cudaStream_t stream) {
  launch_write_rows<HeadDim>(SlotRows<HeadDim>{from, from_first}, count, kv_heads, to, to_first, stream);
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
    const int slot = slots.slot(first + begin + i / tables.pairs), pair = i % tables.pairs;
    const int2 channels = pair_channels(tables, pair);
    std::uint16_t *block = slots.block<HeadDim>(head, slot);
    std::uint16_t &a = block[BlockLayout<HeadDim>::key(slot % 16, channels.x)];
    std::uint16_t &b = block[BlockLayout<HeadDim>::key(slot % 16, channels.y)];
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

// ---- the check at the door

/// What *first_bad holds while every element is in range.
inline constexpr unsigned long long none_bad = ~0ull;

/// Lowers *first_bad to (token * heads + head) * head_dim + channel of the first element that is not
/// finite or beyond float16's range. Eight channels a thread, in one load of 16 bytes or two where every
/// row is aligned.
template <class S>
__global__ void count_bad(DeviceTensor<const S> x, long long tokens, int heads, int head_dim,
                          bool aligned, unsigned long long *first_bad) {
  const int eighths = head_dim / 8;
  const long long pieces = tokens * heads * eighths;
  const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < pieces;
       i += step) {
    const long long row = i / eighths;
    const S *from = x.row(row / heads, static_cast<int>(row % heads)) + i % eighths * 8;
    const EightElements<S> elements(from, aligned);
    int bad = 8;
#pragma unroll
    for (int channel = 7; channel >= 0; --channel) {
      if (!in_range(elements[channel])) bad = channel;
    }
    if (bad < 8) atomicMin(first_bad, static_cast<unsigned long long>(i) * 8 + bad);
  }
}

/// *first_bad: none_bad, or what an earlier call left there.
template <class S>
void launch_count_bad(DeviceTensor<const S> x, long long tokens, int heads, int head_dim,
                      unsigned long long *first_bad, cudaStream_t stream) {
  if (tokens == 0) return;
  const long long blocks = (tokens * heads * (head_dim / 8) + 255) / 256;
  count_bad<S><<<static_cast<unsigned>(std::min(blocks, 2048ll)), 256, 0, stream>>>(
      x, tokens, heads, head_dim, rows_aligned(x), first_bad);
}

}  // namespace squat::cuda
