#pragma once

// Adds up what warps and blocks found out about a segment, by their log-sum-exp, turns packed values
// back from their Hadamard rotation and writes the output.
//
// A slot holds a segment's sums over a run of units. The warps of a block merge theirs in shared memory;
// the block that finishes a segment last merges those of all its blocks, which it reads from the
// second-level cache: HeadDim * 32 bytes a slot.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "squat/cuda/attend_call.cuh"
#include "squat/cuda/exact_tiles.cuh"
#include "squat/cuda/warp.cuh"

namespace squat::cuda {

/// What slots of the workspace hold: a float4 a lane and tile of channels as C has them, then maxima and
/// sums of the columns.
template <int HeadDim>
struct SlotLayout {
  static constexpr int states = HeadDim / 16 * warp_lanes * 4;
  static constexpr int floats = states + 2 * column_count;
};

/// The slot of a block and segment. Exact rows have one of their own: packed values may be rotated.
/// Blocks and segments both come in order, so that a block is in its first segment's successors once.
template <int HeadDim, class S>
__device__ inline float *slot_of(const AttendCall<S> &call, int segment, int block, bool packed) {
  const std::size_t index = 2 * (static_cast<std::size_t>(segment) + static_cast<std::size_t>(block));
  return call.slots + (index + (packed ? 1 : 0)) * SlotLayout<HeadDim>::floats;
}

/// Merges the slots in the stages of a block's first `count` warps into one of the workspace.
template <int HeadDim>
__device__ inline void merge_stages(const std::uint8_t *stages, int stage_bytes, int count,
                                    float *slot) {
  constexpr int fragments = HeadDim / 16 * warp_lanes;
  const auto stage = [&](int warp) {
    return reinterpret_cast<const float *>(stages + warp * stage_bytes);
  };
  const auto state = [&](int warp, int i) { return stage(warp)[SlotLayout<HeadDim>::states + i]; };
  const auto maximum = [&](int column) {
    float largest = -INFINITY;
    for (int warp = 0; warp < count; ++warp) largest = fmaxf(largest, state(warp, column));
    return largest;
  };
  const auto factor = [&](int warp, int column, float largest) {
    const float own = state(warp, column);
    return own == -INFINITY ? 0.0f : power_of_two(own - largest);
  };
  const int thread = static_cast<int>(threadIdx.x);
  const int column = 2 * (thread % 4);  // of the thread's fragments, and the next
  const float largest[2] = {maximum(column), maximum(column + 1)};
  float factors[block_warps][2];
#pragma unroll
  for (int warp = 0; warp < block_warps; ++warp) {
    for (int i = 0; i < 2; ++i)
      factors[warp][i] = warp < count ? factor(warp, column + i, largest[i]) : 0.0f;
  }
  for (int i = thread; i < fragments; i += block_threads) {
    float4 sum = {0, 0, 0, 0};
#pragma unroll
    for (int warp = 0; warp < block_warps; ++warp) {
      if (warp < count) {
        const float4 part = reinterpret_cast<const float4 *>(stage(warp))[i];
        sum.x += part.x * factors[warp][0], sum.y += part.y * factors[warp][1];
        sum.z += part.z * factors[warp][0], sum.w += part.w * factors[warp][1];
      }
    }
    reinterpret_cast<float4 *>(slot)[i] = sum;
  }
  if (thread < column_count) {
    const float most = maximum(thread);
    float sum = 0;
    for (int warp = 0; warp < count; ++warp) {
      sum += state(warp, column_count + thread) * factor(warp, thread, most);
    }
    slot[SlotLayout<HeadDim>::states + thread] = most;
    slot[SlotLayout<HeadDim>::states + column_count + thread] = sum;
  }
}

/// The slots of one segment: those of exact rows, then those of pages.
struct SegmentSlots {
  int first_exact, exact;
  int first_packed, packed;

  /// first: the segment's first unit of `units`, which `all` busy blocks share.
  __device__ SegmentSlots(std::int64_t units, int all, std::int64_t first, const EntryShape &shape) {
    const auto block_of = [&](std::int64_t unit) {
      return static_cast<int>(((unit + 1) * all - 1) /
                              units);  // the last whose run begins at or before it
    };
    const auto count = [&](std::int64_t begin, std::int64_t end) {
      return begin < end ? block_of(end - 1) - block_of(begin) + 1 : 0;
    };
    const std::int64_t middle = first + shape.exact_units, end = first + shape.units;
    first_exact = block_of(first);
    exact = count(first, middle);
    packed = count(middle, end);
    first_packed = packed > 0 ? block_of(middle) : first_exact;
    last_ = block_of(end - 1);
  }

  __device__ int count() const { return exact + packed; }
  __device__ bool is_packed(int slot) const { return slot >= exact; }
  __device__ int block(int slot) const {
    return is_packed(slot) ? first_packed + slot - exact : first_exact + slot;
  }
  /// Blocks that have a part in the segment.
  __device__ int blocks() const { return last_ - first_exact + 1; }

 private:
  int last_;
};

/// Slots a segment has at most, see most_blocks.
inline constexpr int most_slots = 512;

/// Whether this block is the last of `blocks` to come here; it sees what the others wrote.
__device__ inline bool is_last(std::uint32_t *arrived, int blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(arrived, 1u) == static_cast<std::uint32_t>(blocks) - 1;
    if (last) *arrived = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

/// Rotates `HeadDim` channels in shared memory by one warp, see rotate_hadamard().
template <int HeadDim>
__device__ inline void rotate_channels(float *row) {
  constexpr int block = HeadDim & -HeadDim;
  const int lane = lane_index();
  for (int span = 1; span < block; span *= 2) {
    __syncwarp();
    for (int i = lane; i < HeadDim / 2; i += warp_lanes) {
      const int low = i / span * 2 * span + i % span;
      const float a = row[low], b = row[low + span];
      row[low] = a + b;
      row[low + span] = a - b;
    }
  }
  __syncwarp();
  const float scale = rsqrtf(static_cast<float>(block));
  for (int i = lane; i < HeadDim; i += warp_lanes) row[i] *= scale;
  __syncwarp();
}

/// Merges a segment's slots and writes its output, by all threads of a block. scratch: shared memory of
/// [2, column_count, HeadDim] and [slots, column_count] floats.
template <int HeadDim, bool Rotated, class S>
__device__ inline void merge_slots(const AttendCall<S> &call, const BatchEntry &entry, int head,
                                   int tile, const SegmentSlots &slots, int segment, void *scratch) {
  constexpr int states = SlotLayout<HeadDim>::states;
  using Sums = float[column_count][HeadDim];
  auto *sums = static_cast<Sums *>(scratch);  // of exact and of packed values
  auto *factors = reinterpret_cast<float *>(sums + 2);
  __shared__ float weights[column_count];
  const int heads = call.query_heads / call.kv_heads;
  const int columns = min(column_count, entry.tokens * heads - tile * column_count);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_lanes, lane = lane_index();
  const auto slot = [&](int i) {
    return slot_of<HeadDim>(call, segment, slots.block(i), slots.is_packed(i));
  };
  for (int column = warp; column < columns; column += block_warps) {
    constexpr int at_once = most_slots / warp_lanes;  // slots a lane has
    float maxima[at_once], own[at_once], most = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int index = i * warp_lanes + lane;
      maxima[i] = -INFINITY;
      if (index < slots.count()) {
        const float *state = slot(index) + states + column;
        maxima[i] = state[0], own[i] = state[column_count];
        most = fmaxf(most, maxima[i]);
      }
    }
    for (int step = 16; step > 0; step /= 2)
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int index = i * warp_lanes + lane;
      if (index < slots.count()) {
        const float factor = maxima[i] == -INFINITY ? 0.0f : power_of_two(maxima[i] - most);
        factors[index * column_count + column] = factor;
        sum += factor * own[i];
      }
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) weights[column] = 1 / sum;
  }
  __syncthreads();
  // Fragments of the columns that count: lanes of the first `pairs` values of t.
  const int pairs = (columns + 1) / 2;
  for (int i = thread; i < HeadDim / 2 * pairs; i += block_threads) {
    const int t = i % pairs, row = i / pairs, piece = row * 4 + t, column = 2 * t;
    const auto add_slots = [&](int begin, int end) {
      float4 total = {0, 0, 0, 0};
#pragma unroll 16
      for (int j = begin; j < end; ++j) {
        const float4 part = reinterpret_cast<const float4 *>(slot(j))[piece];
        const float low = factors[j * column_count + column];
        const float high = column + 1 < columns ? factors[j * column_count + column + 1] : 0.0f;
        total.x += part.x * low, total.y += part.y * high, total.z += part.z * low,
            total.w += part.w * high;
      }
      return total;
    };
    const int channel = row / 8 * 16 + row % 8;
    const auto store = [&](Sums &to, const float4 &total) {
      to[column][channel] = total.x, to[column + 1][channel] = total.y;
      to[column][channel + 8] = total.z, to[column + 1][channel + 8] = total.w;
    };
    store(sums[0], add_slots(0, slots.exact));
    store(sums[1], add_slots(slots.exact, slots.count()));
  }
  __syncthreads();
  for (int c = warp; c < columns; c += block_warps) {
    if constexpr (Rotated) rotate_channels<HeadDim>(sums[1][c]);
    const int row = tile * column_count + c;
    auto *out = reinterpret_cast<DeviceElementOf<S> *>(
        call.out.row(entry.first_row + row / heads, head * heads + row % heads));
    for (int i = lane; i < HeadDim; i += warp_lanes) {
      out[i] = static_cast<DeviceElementOf<S>>((sums[0][c][i] + sums[1][c][i]) * weights[c]);
    }
  }
  __syncthreads();
}

}  // namespace squat::cuda
