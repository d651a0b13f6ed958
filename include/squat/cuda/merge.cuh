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

/// Merges the slots in the stages of a block's warps into one of the workspace. All loops here and below
/// stay loops: code that runs once costs its way from memory.
template <int HeadDim>
__device__ inline void merge_stages(const std::uint8_t *stages, int stage_bytes, float *slot) {
  constexpr int fragments = HeadDim / 16 * warp_lanes, states = SlotLayout<HeadDim>::states;
  __shared__ __align__(16) float factors[block_warps][column_count];
  const auto stage = [&](int warp) {
    return reinterpret_cast<const float *>(stages + warp * stage_bytes);
  };
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < block_warps * column_count) {
    const int warp = thread / column_count, column = thread % column_count;
    const auto over_warps = [](float x, auto operation) {
      for (int step = column_count; step < warp_lanes; step *= 2) {
        x = operation(x, __shfl_xor_sync(0xffffffffu, x, step));
      }
      return x;
    };
    static_assert(block_warps * column_count == warp_lanes);
    const float own = stage(warp)[states + column];
    const float largest = over_warps(own, [](float a, float b) { return fmaxf(a, b); });
    const float factor = power_of_two(own - largest);
    factors[warp][column] = factor;
    const float sum = over_warps(factor * stage(warp)[states + column_count + column],
                                 [](float a, float b) { return a + b; });
    if (warp == 0) {
      slot[states + column] = largest;
      slot[states + column_count + column] = sum;
    }
  }
  __syncthreads();
  const int column = 2 * (thread % 4);  // of the thread's fragments, and the next
#pragma unroll 1
  for (int i = thread; i < fragments; i += block_threads) {
    float4 sum = {0, 0, 0, 0};
#pragma unroll
    for (int warp = 0; warp < block_warps; ++warp) {
      const float4 part = reinterpret_cast<const float4 *>(stage(warp))[i];
      const float2 factor = *reinterpret_cast<const float2 *>(&factors[warp][column]);
      sum.x += part.x * factor.x, sum.y += part.y * factor.y;
      sum.z += part.z * factor.x, sum.w += part.w * factor.y;
    }
    reinterpret_cast<float4 *>(slot)[i] = sum;
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
#pragma unroll 1
  for (int span = 1; span < block; span *= 2) {
    __syncwarp();
#pragma unroll 1
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

/// What merge_slots() needs of shared memory at least.
template <int HeadDim>
__host__ __device__ constexpr int merge_bytes() {
  return (2 * HeadDim + most_slots) * column_count * static_cast<int>(sizeof(float)) +
         8 * block_threads * static_cast<int>(sizeof(float4));
}

/// Merges a segment's slots and writes its output, by all threads of a block. scratch: `bytes` bytes of
/// shared memory, merge_bytes() or more.
template <int HeadDim, bool Rotated, class S>
__device__ inline void merge_slots(const AttendCall<S> &call, const BatchEntry &entry, int head,
                                   int tile, const SegmentSlots &slots, int segment, void *scratch,
                                   int bytes) {
  constexpr int states = SlotLayout<HeadDim>::states;
  using Sums = float[column_count][HeadDim];
  auto *sums = static_cast<Sums *>(scratch);  // of exact and of packed values
  auto *factors = reinterpret_cast<float *>(sums + 2);
  auto *pieces = reinterpret_cast<float4 *>(factors + slots.count() * column_count);
  const int at_once = static_cast<int>(
      (static_cast<std::uint8_t *>(scratch) + bytes - reinterpret_cast<std::uint8_t *>(pieces)) /
      (block_threads * sizeof(float4)));
  __shared__ float weights[column_count];
  const int heads = call.query_heads / call.kv_heads;
  const int columns = min(column_count, entry.tokens * heads - tile * column_count);
  const int thread = static_cast<int>(threadIdx.x), warp = warp_index(), lane = lane_index();
  const auto slot = [&](int i) {
    return slot_of<HeadDim>(call, segment, slots.block(i), slots.is_packed(i));
  };
#pragma unroll 1
  for (int column = warp; column < columns; column += block_warps) {
    float most = -INFINITY, sum = 0;
#pragma unroll 1
    for (int i = lane; i < slots.count(); i += warp_lanes) {
      const float *state = slot(i) + states + column;
      factors[i * column_count + column] = state[0];
      most = fmaxf(most, state[0]);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
#pragma unroll 1
    for (int i = lane; i < slots.count(); i += warp_lanes) {
      float &factor = factors[i * column_count + column];
      factor = power_of_two(factor - most);
      sum += factor * slot(i)[states + column_count + column];
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) weights[column] = 1 / sum;
  }
  __syncthreads();
  // Fragments of the columns that count: lanes of the first `pairs` values of t. A thread copies what it
  // adds up: as many slots as there is room for are on their way at a time.
  const int pairs = (columns + 1) / 2;
#pragma unroll 1
  for (int i = thread; i < HeadDim / 2 * pairs; i += block_threads) {
    const int t = i % pairs, row = i / pairs, piece = row * 4 + t, column = 2 * t;
    const int channel = row / 8 * 16 + row % 8;
    float4 total = {0, 0, 0, 0};
    const auto store = [&](Sums &to) {
      to[column][channel] = total.x, to[column + 1][channel] = total.y;
      to[column][channel + 8] = total.z, to[column + 1][channel + 8] = total.w;
      total = {0, 0, 0, 0};
    };
#pragma unroll 1
    for (int first = 0; first < slots.count(); first += at_once) {
      const int end = min(first + at_once, slots.count());
#pragma unroll 2
      for (int j = first; j < end; ++j) {
        copy_async(pieces + (j - first) * block_threads + thread,
                   reinterpret_cast<const float4 *>(slot(j)) + piece);
      }
      commit_copies();
      wait_for_copies<0>();
#pragma unroll 2
      for (int j = first; j < end; ++j) {
        if (j == slots.exact) store(sums[0]);
        const float4 part = pieces[(j - first) * block_threads + thread];
        const float *factor = factors + j * column_count + column;
        const float low = factor[0], high = column + 1 < columns ? factor[1] : 0.0f;
        total.x += part.x * low, total.y += part.y * high;
        total.z += part.z * low, total.w += part.w * high;
      }
    }
    const bool packed = slots.packed > 0;
    store(sums[packed ? 1 : 0]);
    if (slots.exact == 0 || !packed) store(sums[packed ? 0 : 1]);  // nothing
  }
  __syncthreads();
#pragma unroll 1
  for (int c = warp; c < columns; c += block_warps) {
    if constexpr (Rotated) rotate_channels<HeadDim>(sums[1][c]);
    const int row = tile * column_count + c;
    auto *out = reinterpret_cast<DeviceElementOf<S> *>(
        call.out.row(entry.first_row + row / heads, head * heads + row % heads));
#pragma unroll 1
    for (int i = lane; i < HeadDim; i += warp_lanes) {
      out[i] = static_cast<DeviceElementOf<S>>((sums[0][c][i] + sums[1][c][i]) * weights[c]);
    }
  }
  __syncthreads();
}

}  // namespace squat::cuda
