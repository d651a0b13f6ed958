#pragma once

// Adds up what the blocks of attend.cuh found out about each segment, by their log-sum-exp, turns packed
// values back from their Hadamard rotation and writes the output.
//
// A thread block takes a segment: its 16-byte pieces of a slot are dealt to HeadDim * 2 threads, its slots to
// `slot_groups` groups of these. Bytes read: HeadDim * 32 a slot, mostly from the second-level cache.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/cuda/attend.cuh"

namespace squat::cuda {

template <int HeadDim>
inline constexpr int slot_groups = HeadDim > 128 ? 2 : 4;

/// The blocks that have a part in the units [first, last) of `units`.
struct BlockRange {
  int first;
  int count;

  __device__ BlockRange(std::int64_t units, int blocks, std::int64_t first_unit, std::int64_t last_unit)
      : first(block_of(units, blocks, first_unit)),
        count(first_unit < last_unit ? block_of(units, blocks, last_unit - 1) - first + 1 : 0) {}

 private:
  /// The last block whose run starts at or before the unit: it has a part in it.
  __device__ static int block_of(std::int64_t units, int blocks, std::int64_t unit) {
    return units == 0 ? 0 : static_cast<int>(((unit + 1) * blocks - 1) / units);
  }
};

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

/// Its own grid: [most_tiles * kv_heads, entries]. grid: blocks of the attention's.
template <int HeadDim, bool Rotated, class S>
__global__ void __launch_bounds__(HeadDim * 2 * slot_groups<HeadDim>)
    merge_kernel(const AttendCall<S> call, int grid) {
  constexpr int pieces = HeadDim * 2, groups = slot_groups<HeadDim>;
  extern __shared__ float factors[];  // [slots, column_count], and what the slots' sums count
  __shared__ float sums[2][column_count][HeadDim];  // of exact and of packed values
  __shared__ float weights[column_count];

  const int index = static_cast<int>(blockIdx.y);
  const BatchEntry entry = call.batch[index];
  const EntryShape shape(call, entry);
  const int segment = static_cast<int>(blockIdx.x);
  if (segment >= shape.tiles * call.kv_heads) return;
  const EntryStart start = call.starts[index];
  const std::int64_t units = call.starts[call.entries].unit;
  const std::int64_t first = start.unit + std::int64_t{segment} * shape.units;
  const int blocks = busy_blocks(units, grid);
  const BlockRange exact(units, blocks, first, first + shape.exact_units);
  const BlockRange packed(units, blocks, first + shape.exact_units, first + shape.units);
  const int slots = exact.count + packed.count;
  const auto slot = [&](int i) {
    const bool is_packed = i >= exact.count;
    const int block = is_packed ? packed.first + i - exact.count : exact.first + i;
    return call.slots + slot_index(start.segment + segment, block, is_packed) * SlotLayout<HeadDim>::floats;
  };

  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int i = thread; i < slots * column_count; i += threads) {
    factors[i] = slot(i / column_count)[SlotLayout<HeadDim>::states + i % column_count];
  }
  for (int i = thread; i < 2 * column_count * HeadDim; i += threads) (&sums[0][0][0])[i] = 0;
  __syncthreads();
  if (thread / warp_lanes < column_count) {  // a warp a column
    const int column = thread / warp_lanes, lane = thread % warp_lanes;
    float most = -INFINITY, sum = 0;
    for (int i = lane; i < slots; i += warp_lanes) most = fmaxf(most, factors[i * column_count + column]);
    for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
    for (int i = lane; i < slots; i += warp_lanes) {
      float &factor = factors[i * column_count + column];
      factor = factor == -INFINITY ? 0.0f : power_of_two(factor - most);
      sum += factor * slot(i)[SlotLayout<HeadDim>::states + column_count + column];
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) weights[column] = 1 / sum;
  }
  __syncthreads();

  const int piece = thread % pieces, group = thread / pieces;
  const int lane = piece % warp_lanes, column = 2 * (lane % 4);
  const auto add_slots = [&](int begin, int end) {
    float4 total = {0, 0, 0, 0};
#pragma unroll 4
    for (int i = begin + group; i < end; i += groups) {
      const float4 part = reinterpret_cast<const float4 *>(slot(i))[piece];
      const float low = factors[i * column_count + column], high = factors[i * column_count + column + 1];
      total.x += part.x * low, total.y += part.y * high, total.z += part.z * low, total.w += part.w * high;
    }
    return total;
  };
  const float4 total[2] = {add_slots(0, exact.count), add_slots(exact.count, slots)};
  const int channel = piece / warp_lanes * 16 + lane / 4;
  for (int turn = 0; turn < groups; ++turn) {
    if (group == turn) {
      for (int i = 0; i < 2; ++i) {
        sums[i][column][channel] += total[i].x, sums[i][column + 1][channel] += total[i].y;
        sums[i][column][channel + 8] += total[i].z, sums[i][column + 1][channel + 8] += total[i].w;
      }
    }
    __syncthreads();
  }

  const int heads = call.query_heads / call.kv_heads;
  const int head = segment / shape.tiles, tile = call.first_tile + segment % shape.tiles;
  const int warp = thread / warp_lanes;
  if (warp >= column_count) return;
  const int row = tile * column_count + warp;
  if (row >= entry.tokens * heads) return;
  if constexpr (Rotated) rotate_channels<HeadDim>(sums[1][warp]);
  auto *out = reinterpret_cast<DeviceElementOf<S> *>(
      call.out.row(entry.first_row + row / heads, head * heads + row % heads));
  for (int i = thread % warp_lanes; i < HeadDim; i += warp_lanes) {
    const float x = (sums[0][warp][i] + sums[1][warp][i]) * weights[warp];
    out[i] = static_cast<DeviceElementOf<S>>(x);
  }
}

}  // namespace squat::cuda
