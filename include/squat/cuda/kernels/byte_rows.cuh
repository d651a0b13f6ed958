#pragma once

// Rows of a tail in bytes (ByteBlock): what arrives, moves, turns and is needed as T. A warp has a row.

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "squat/cuda/kernels/append_step.cuh"
#include "squat/cuda/kernels/elements.cuh"
#include "squat/cuda/kernels/launch_behind.cuh"
#include "squat/cuda/kernels/quantize_affine.cuh"
#include "squat/cuda/kernels/rotary.cuh"
#include "squat/cuda/kernels/row_sums.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/byte_block.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"
#include "squat/cuda/state/exact_slots.cuh"

namespace squat::cuda {

/// A key or a value, in the registers of a warp, quads of channels as RowSums has them.
template <int HeadDim>
struct WarpRow {
  using Quads = RowSums<HeadDim>;
  using Block = ByteBlock<HeadDim>;
  static constexpr int count = Quads::count;

  float4 x[count] = {};

  /// Calls visit(channel, number) for every channel of the lane.
  template <class Visit>
  __device__ void for_each(Visit &&visit) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (!Quads::has(i)) continue;
      const int channel = Quads::quad(i) * 4;
      visit(channel, x[i].x);
      visit(channel + 1, x[i].y);
      visit(channel + 2, x[i].z);
      visit(channel + 3, x[i].w);
    }
  }

  __device__ void rotate() { rotate_quads<HeadDim>(x); }
  __device__ void rotate_back() { rotate_quads_back<HeadDim>(x); }

  /// Reads a row of a call's tensor.
  template <class S>
  __device__ void read(const S *row) {
    for_each([&](int channel, float &number) { number = load_element(row + channel); });
  }

  /// Reads row `token` % 16 of a block, as it is kept: rotated.
  __device__ void read(const std::uint8_t *block, int token, bool value) {
    const int row = token % 16;
    const float step = *step_of(const_cast<std::uint8_t *>(block), row, value);
    for_each([&](int channel, float &number) {
      number = step * static_cast<float>(block[place(row, channel, value)] - Block::zero);
    });
  }

  /// Rounds a rotated row into row `token` % 16 of a block.
  __device__ void write(std::uint8_t *block, int token, bool value) {
    constexpr float most = 127;
    const int row = token % 16;
    float largest = 0;
    for_each([&](int, float number) { largest = fmaxf(largest, fabsf(number)); });
    const __half step = __hmax(saturated_half(largest_lane<1>(largest) / most), smallest_half());
    const float inverse = 1 / __half2float(step);
    for_each([&](int channel, float number) {
      const float code = rintf(fminf(fmaxf(number * inverse, -most), most));
      block[place(row, channel, value)] =
          static_cast<std::uint8_t>(static_cast<int>(code) + Block::zero);
    });
    if (lane_index() == 0) *step_of(block, row, value) = step;
  }

  __device__ static int place(int row, int channel, bool value) {
    return value ? Block::value(row, channel) : Block::key(row, channel);
  }
  __device__ static __half *step_of(std::uint8_t *block, int row, bool value) {
    return reinterpret_cast<__half *>(block + (value ? Block::value_step(row) : Block::key_step(row)));
  }
};

inline constexpr int row_warps_of_block = 8;

/// A warp's place in a grid of rows, keys and values: token of the grid's, and which of the two.
struct RowPlace {
  int token;
  bool value;

  __device__ RowPlace()
      : token((static_cast<int>(blockIdx.x) * row_warps_of_block + warp_index()) / 2),
        value(warp_index() % 2 != 0) {}
};
/// Its extent for so many tokens.
inline unsigned row_blocks(int tokens) {
  return static_cast<unsigned>((2 * tokens + row_warps_of_block - 1) / row_warps_of_block);
}
inline constexpr int row_block_threads = row_warps_of_block * warp_lanes;

/// Writes the rows of every entry that became no sinks to its tail; the state counts them already. Grid:
/// blocks of 16 tokens that an entry touches, KV heads, entries; keys by the first half of the warps,
/// values by the others, through shared memory, so that whole blocks are written in pieces of 16 bytes.
template <int HeadDim, class S>
__global__ void __launch_bounds__(row_block_threads)
    append_byte_rows(const BatchEntry *batch, DeviceTensor<const S> k, DeviceTensor<const S> v) {
  using Block = ByteBlock<HeadDim>;
  __shared__ uint4 pieces[Block::elements / 16];
  auto *bytes = reinterpret_cast<std::uint8_t *>(pieces);
  const BatchEntry entry = batch[blockIdx.z];
  const LayerState &state = *entry.state;
  const int heads = static_cast<int>(gridDim.y), head = static_cast<int>(blockIdx.y);
  const int count = entry.tokens - entry.sinks, first = state.tail - count;
  const int begin = first / 16 * 16 + static_cast<int>(blockIdx.x) * 16;
  if (begin >= state.tail) return;
  const int from = max(begin, first), to = min(begin + 16, state.tail);
  const bool value = warp_index() % 2 != 0;
  for (int token = from + warp_index() / 2; token < to; token += row_warps_of_block / 2) {
    const long long row = entry.first_row + entry.sinks + token - first;
    const S *source = value ? v.row(row, head) : k.row(row, head);
    WarpRow<HeadDim> x;
    x.read(source);
    x.rotate();
    x.write(bytes, token, value);
  }
  __syncthreads();
  std::uint8_t *block =
      tail_slots<HeadDim, ByteSlots>(state, heads).template block<HeadDim>(head, begin);
  if (to - from == 16) {
    for (int i = static_cast<int>(threadIdx.x); i < Block::elements / 16; i += row_block_threads) {
      reinterpret_cast<uint4 *>(block)[i] = pieces[i];
    }
    return;
  }
  const int rows = to - from;
  for (int i = static_cast<int>(threadIdx.x); i < 2 * rows * HeadDim; i += row_block_threads) {
    const int row = from - begin + i / HeadDim % rows;
    const int at = WarpRow<HeadDim>::place(row, i % HeadDim, i >= rows * HeadDim);
    block[at] = bytes[at];
  }
  for (int i = static_cast<int>(threadIdx.x); i < 2 * rows; i += row_block_threads) {
    const int row = from - begin + i % rows;
    *WarpRow<HeadDim>::step_of(block, row, i >= rows) =
        *WarpRow<HeadDim>::step_of(bytes, row, i >= rows);
  }
}

/// most_tokens: of an entry.
template <int HeadDim, class S>
void launch_append_byte_rows(const BatchEntry *batch, int entries, int most_tokens, int kv_heads,
                             DeviceTensor<const S> k, DeviceTensor<const S> v, cudaStream_t stream) {
  if (entries == 0 || most_tokens == 0) return;
  const dim3 grid(static_cast<unsigned>(token_blocks(most_tokens) + 1), static_cast<unsigned>(kv_heads),
                  static_cast<unsigned>(entries));
  append_byte_rows<HeadDim, S><<<grid, row_block_threads, 0, stream>>>(batch, k, v);
}

/// append_step() for tails of bytes.
template <int HeadDim, class S>
__global__ void __launch_bounds__(1024)
    append_byte_step(const BatchEntry *batch, int kv_heads, DeviceTensor<const S> k,
                     DeviceTensor<const S> v, std::uint32_t *errors) {
  allow_next_launch();
  wait_for_launches();
  const BatchEntry entry = batch[blockIdx.x];
  LayerState &state = *entry.state;
  const ByteSlots tail = tail_slots<HeadDim, ByteSlots>(state, kv_heads);
  const bool room = state.tail < tail.capacity;
  bool bad = false;
  const int warps = static_cast<int>(blockDim.x) / warp_lanes;
  for (int i = warp_index(); room && i < 2 * kv_heads; i += warps) {
    const int head = i / 2;
    const bool value = i % 2 != 0;
    const S *source = value ? v.row(entry.first_row, head) : k.row(entry.first_row, head);
    WarpRow<HeadDim> x;
    x.for_each([&](int channel, float &number) {
      number = load_element(source + channel);
      if (in_range(number)) return;
      bad = true;
      number = 0;
    });
    x.rotate();
    x.write(tail.block<HeadDim>(head, state.tail), state.tail, value);
  }
  if (bad) atomicOr(errors, bad_element);
  __syncthreads();
  if (threadIdx.x == 0) count_step(state, room, errors);
}

template <int HeadDim, class S>
void launch_append_byte_step(const BatchEntry *batch, int entries, int kv_heads, DeviceTensor<const S> k,
                             DeviceTensor<const S> v, std::uint32_t *errors, cudaStream_t stream) {
  if (entries == 0) return;
  const int warps = std::clamp(2 * kv_heads, 4, 32);  // of a block: a row each, or a few
  launch_behind("append of a step", append_byte_step<HeadDim, S>, static_cast<unsigned>(entries),
                warps * warp_lanes, 0, stream, launches_overlap(), batch, kv_heads, k, v, errors);
}

/// Writes the rows of every entry's tail to BatchEntry::unpacked as T: those that its call found there,
/// from the tail's bytes, and the call's own, which follow, from its tensors (`appended`). Grid: rows,
/// KV heads, entries.
template <int HeadDim, class T, class S>
__global__ void __launch_bounds__(row_block_threads)
    unpack_tail(const BatchEntry *batch, bool appended, DeviceTensor<const S> k,
                DeviceTensor<const S> v) {
  using Block = BlockLayout<HeadDim>;
  const BatchEntry entry = batch[blockIdx.z];
  const LayerState &state = *entry.state;
  const int heads = static_cast<int>(gridDim.y), head = static_cast<int>(blockIdx.y);
  const RowPlace place;
  const int token = place.token, old = state.tail - (appended ? entry.tokens - entry.sinks : 0);
  if (token >= state.tail) return;
  WarpRow<HeadDim> x;
  if (token < old) {
    const ByteSlots tail = tail_slots<HeadDim, ByteSlots>(state, heads);
    x.read(tail.block<HeadDim>(head, token), token, place.value);
    x.rotate_back();
  } else {
    const long long row = entry.first_row + entry.sinks + token - old;
    const S *source = place.value ? v.row(row, head) : k.row(row, head);
    x.read(source);
  }
  std::uint16_t *to = unpacked_slots(entry.unpacked, heads).template block<HeadDim>(head, token);
  x.for_each([&](int channel, float number) {
    to[place.value ? Block::value(token % 16, channel) : Block::key(token % 16, channel)] =
        element_bits<T>(number);
  });
}

/// most_tokens: of a tail, at most.
template <int HeadDim, class T, class S>
void launch_unpack_tail(const BatchEntry *batch, int entries, int most_tokens, int kv_heads,
                        bool appended, DeviceTensor<const S> k, DeviceTensor<const S> v,
                        cudaStream_t stream) {
  if (entries == 0 || most_tokens == 0) return;
  const dim3 grid(row_blocks(most_tokens), static_cast<unsigned>(kv_heads),
                  static_cast<unsigned>(entries));
  unpack_tail<HeadDim, T, S><<<grid, row_block_threads, 0, stream>>>(batch, appended, k, v);
}

/// Grid: rows, KV heads.
template <int HeadDim>
__global__ void __launch_bounds__(row_block_threads)
    copy_byte_rows(ByteSlots from, int from_first, int count, ByteSlots to, int to_first) {
  using Row = WarpRow<HeadDim>;
  const int head = static_cast<int>(blockIdx.y);
  const RowPlace place;
  if (place.token >= count) return;
  const int source = from_first + place.token, target = to_first + place.token;
  std::uint8_t *read = from.block<HeadDim>(head, source), *write = to.block<HeadDim>(head, target);
  for (int channel = lane_index(); channel < HeadDim; channel += warp_lanes) {
    write[Row::place(target % 16, channel, place.value)] =
        read[Row::place(source % 16, channel, place.value)];
  }
  if (lane_index() == 0) {
    *Row::step_of(write, target % 16, place.value) = *Row::step_of(read, source % 16, place.value);
  }
}

/// See launch_copy_rows().
template <int HeadDim>
void launch_copy_rows(ByteSlots from, int from_first, int count, int kv_heads, ByteSlots to,
                      int to_first, cudaStream_t stream) {
  if (count == 0) return;
  const dim3 grid(row_blocks(count), static_cast<unsigned>(kv_heads));
  copy_byte_rows<HeadDim><<<grid, row_block_threads, 0, stream>>>(from, from_first, count, to, to_first);
}

/// Turns keys by `by` positions, and rounds them once more. A block turns 8 tokens of a head.
template <int HeadDim>
__global__ void __launch_bounds__(row_block_threads)
    turn_byte_rows(ByteSlots slots, int first, int count, TileTables tables, long long by) {
  __shared__ float2 angles[HeadDim / 2];
  __shared__ float rows[row_warps_of_block][HeadDim];
  make_turn(tables, by, angles);
  __syncthreads();
  const int head = static_cast<int>(blockIdx.y);
  const int index = static_cast<int>(blockIdx.x) * row_warps_of_block + warp_index();
  if (index >= count) return;
  const int token = first + index;
  std::uint8_t *block = slots.block<HeadDim>(head, token);
  float *row = rows[warp_index()];
  WarpRow<HeadDim> x;
  x.read(block, token, false);
  x.rotate_back();
  x.for_each([&](int channel, float number) { row[channel] = number; });
  __syncwarp();
  for (int pair = lane_index(); pair < tables.pairs; pair += warp_lanes) {
    const int2 channels = pair_channels(tables, pair);
    const float2 turned = turn_pair(angles[pair], {row[channels.x], row[channels.y]});
    row[channels.x] = turned.x;
    row[channels.y] = turned.y;
  }
  __syncwarp();
  x.for_each([&](int channel, float &number) { number = row[channel]; });
  x.rotate();
  x.write(block, token, false);
}

/// See launch_turn_rows().
template <int HeadDim, class T>
void launch_turn_rows(ByteSlots slots, int first, int count, int kv_heads, const TileTables &tables,
                      long long by, cudaStream_t stream) {
  if (count == 0 || tables.pairs == 0) return;
  const dim3 grid(static_cast<unsigned>((count + row_warps_of_block - 1) / row_warps_of_block),
                  static_cast<unsigned>(kv_heads));
  turn_byte_rows<HeadDim><<<grid, row_block_threads, 0, stream>>>(slots, first, count, tables, by);
}

/// Grid: rows, KV heads.
template <int HeadDim, class S>
__global__ void __launch_bounds__(row_block_threads)
    dequantize_byte_rows(ByteSlots slots, int count, DeviceTensor<S> k, DeviceTensor<S> v, int first) {
  const int head = static_cast<int>(blockIdx.y);
  const RowPlace place;
  if (place.token >= count) return;
  WarpRow<HeadDim> x;
  x.read(slots.block<HeadDim>(head, place.token), place.token, place.value);
  x.rotate_back();
  S *to = (place.value ? v : k).row(first + place.token, head);
  x.for_each([&](int channel, float number) { store_element(to + channel, number); });
}

/// See launch_dequantize_rows().
template <int HeadDim, class T, class S>
void launch_dequantize_rows(ByteSlots slots, int count, int kv_heads, DeviceTensor<S> k,
                            DeviceTensor<S> v, int first, cudaStream_t stream) {
  if (count == 0) return;
  const dim3 grid(row_blocks(count), static_cast<unsigned>(kv_heads));
  dequantize_byte_rows<HeadDim, S><<<grid, row_block_threads, 0, stream>>>(slots, count, k, v, first);
}

}  // namespace squat::cuda
