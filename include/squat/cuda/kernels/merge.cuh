#pragma once

// Adds up what warps found out about a segment, by their log-sum-exp, turns packed values back from
// their Hadamard rotation and writes the output.
//
// A slot holds a segment's sums over a warp's run of units. The kernel here is launched behind the
// attention's: a warp a query row where there are many, else all warps of a block, so that all slots of
// a row are on their way from the second-level cache at once.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "squat/cuda/kernels/attend_call.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/exact_tiles.cuh"

namespace squat::cuda {

/// What slots of the workspace hold: the sums of each column's channels, then the columns' references
/// (what weights are relative to, a power of two) and the sums of their weights.
template <int HeadDim>
struct SlotLayout {
  static constexpr int references = column_count * HeadDim;
  static constexpr int weights = references + column_count;
  static constexpr int floats = weights + column_count;
};

/// The slot of a worker and segment. Exact rows have one of their own: packed values may be rotated.
/// A worker's units follow each other, and so do workers: of two neighbours one at most shares a segment
/// with the other, so that the sum of both indices names a slot that nobody else has.
template <int HeadDim, class S>
__device__ inline float *slot_of(const AttendCall<S> &call, int segment, int worker, bool packed) {
  const std::size_t index = 2 * (static_cast<std::size_t>(segment) + static_cast<std::size_t>(worker));
  return call.slots + (index + (packed ? 1 : 0)) * SlotLayout<HeadDim>::floats;
}

/// The slots of one segment: those of exact rows, then those of pages.
struct SegmentSlots {
  int first_exact, exact;
  int first_packed, packed;

  /// SegmentSlots() are none.
  SegmentSlots() = default;

  /// first: the segment's first unit of `units`, which `all` busy workers share. shape: an EntryShape,
  /// or what else knows `units` and `exact_units`.
  template <class Shape>
  __device__ SegmentSlots(std::int64_t units, int all, std::int64_t first, const Shape &shape) {
    const auto worker_of = [&](std::int64_t unit) {
      return static_cast<int>(((unit + 1) * all - 1) /
                              units);  // the last whose run begins at or before it
    };
    const auto count = [&](std::int64_t begin, std::int64_t end) {
      return begin < end ? worker_of(end - 1) - worker_of(begin) + 1 : 0;
    };
    const std::int64_t middle = first + shape.exact_units, end = first + shape.units;
    first_exact = worker_of(first);
    exact = count(first, middle);
    packed = count(middle, end);
    first_packed = packed > 0 ? worker_of(middle) : first_exact;
  }

  __device__ int count() const { return exact + packed; }
  __device__ bool is_packed(int slot) const { return slot >= exact; }
  __device__ int worker(int slot) const {
    return is_packed(slot) ? first_packed + slot - exact : first_exact + slot;
  }
};

inline constexpr int merge_warps = 8;
inline constexpr int merge_threads = merge_warps * warp_lanes;

/// What some slots of a row come to. A lane has quads of channels, lane + 32 i of them.
template <int HeadDim>
struct RowSums {
  static constexpr int quads = HeadDim / 4, count = (quads + warp_lanes - 1) / warp_lanes;

  float reference;
  float weight;
  float4 exact[count], packed[count];

  __device__ void clear() {
    reference = -INFINITY;
    weight = 0;
#pragma unroll
    for (int i = 0; i < count; ++i) exact[i] = packed[i] = {0, 0, 0, 0};
  }

  /// Whether quad i of a lane is one.
  __device__ static bool has(int i) { return quads % warp_lanes == 0 || quad(i) < quads; }
  __device__ static int quad(int i) { return i * warp_lanes + lane_index(); }

  __device__ void raise(float to) {
    const float most = fmaxf(reference, to), factor = power_of_two(reference - most);
    reference = most;
    weight *= factor;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      exact[i] = scaled(exact[i], factor);
      packed[i] = scaled(packed[i], factor);
    }
  }

  __device__ void add(const RowSums &other) {
    raise(other.reference);
    const float factor = power_of_two(other.reference - reference);
    weight += other.weight * factor;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      add(exact[i], other.exact[i], factor);
      add(packed[i], other.packed[i], factor);
    }
  }

  /// += x times factor.
  __device__ static void add(float4 &sum, const float4 &x, float factor) {
    sum.x += x.x * factor, sum.y += x.y * factor, sum.z += x.z * factor, sum.w += x.w * factor;
  }
  __device__ static float4 scaled(const float4 &x, float factor) {
    return {x.x * factor, x.y * factor, x.z * factor, x.w * factor};
  }
};

/// Rotates the HeadDim channels that a warp's lanes have, quad i warp_lanes + lane each, see
/// rotate_hadamard().
template <int HeadDim, int Count>
__device__ inline void rotate_quads(float4 (&x)[Count]) {
  constexpr int block = HeadDim & -HeadDim, quads = block / 4;
  static_assert(quads <= warp_lanes || (quads == 2 * warp_lanes && Count == 2));
  const float scale = rsqrtf(static_cast<float>(block));
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const float4 pairs = {x[i].x + x[i].y, x[i].x - x[i].y, x[i].z + x[i].w, x[i].z - x[i].w};
    x[i] = {pairs.x + pairs.z, pairs.y + pairs.w, pairs.x - pairs.z, pairs.y - pairs.w};
#pragma unroll 1
    for (int step = 1; step < quads && step < warp_lanes; step *= 2) {
      const float sign = (lane_index() & step) != 0 ? -1.0f : 1.0f;
      const auto meet = [&](float own) { return own * sign + __shfl_xor_sync(0xffffffffu, own, step); };
      x[i] = {meet(x[i].x), meet(x[i].y), meet(x[i].z), meet(x[i].w)};
    }
    x[i] = RowSums<HeadDim>::scaled(x[i], scale);
  }
  if constexpr (quads > warp_lanes) {
    const float4 low = x[0], high = x[1];
    RowSums<HeadDim>::add(x[0], high, 1);
    x[1] = low;
    RowSums<HeadDim>::add(x[1], high, -1);
  }
}

/// One warp's part of a row's slots: those from `first` on, every `step`th.
template <int HeadDim, class S>
__device__ inline RowSums<HeadDim> add_slots(const AttendCall<S> &call, const SegmentSlots &slots,
                                             int segment, int column, int first, int step) {
  using Slot = SlotLayout<HeadDim>;
  constexpr int together = HeadDim > 128 ? 4 : 8;
  RowSums<HeadDim> sums;
  sums.clear();
#pragma unroll 1
  for (int begin = first; begin < slots.count(); begin += together * step) {
    float references[together], weights[together];
    float4 parts[together][RowSums<HeadDim>::count];
#pragma unroll
    for (int j = 0; j < together; ++j) {
      const int i = begin + j * step;
      references[j] = -INFINITY;
      if (i >= slots.count()) continue;
      const float *slot = slot_of<HeadDim>(call, segment, slots.worker(i), slots.is_packed(i));
      references[j] = slot[Slot::references + column];
      weights[j] = slot[Slot::weights + column];
#pragma unroll
      for (int k = 0; k < RowSums<HeadDim>::count; ++k) {
        if (sums.has(k)) {
          parts[j][k] = reinterpret_cast<const float4 *>(slot + column * HeadDim)[sums.quad(k)];
        }
      }
    }
    float most = references[0];
#pragma unroll
    for (int j = 1; j < together; ++j) most = fmaxf(most, references[j]);
    sums.raise(most);
#pragma unroll
    for (int j = 0; j < together; ++j) {
      const int i = begin + j * step;
      if (i >= slots.count()) break;
      const float factor = power_of_two(references[j] - sums.reference);
      const float packed = slots.is_packed(i) ? factor : 0.0f, exact = factor - packed;
      sums.weight += weights[j] * factor;
#pragma unroll
      for (int k = 0; k < RowSums<HeadDim>::count; ++k) {
        sums.add(sums.exact[k], parts[j][k], exact);
        sums.add(sums.packed[k], parts[j][k], packed);
      }
    }
  }
  return sums;
}

/// Merges the slots of every query row of a launch. A row has `team` warps, 1 or all of a block.
/// columns: rows of a column tile at most; workers, exact_tiles: of the attention's launch.
template <int HeadDim, bool Rotated, class S>
__global__ void __launch_bounds__(merge_threads)
    merge_slots(const AttendCall<S> call, int workers, int exact_tiles, int columns, int team) {
  using Sums = RowSums<HeadDim>;
  extern __shared__ EntryStart starts[];
  __shared__ Sums parts[merge_warps][warp_lanes];
  find_starts(call, exact_tiles, starts);
  const int units = starts[call.entries].unit, busy = busy_workers(units, workers);
  const int rows = starts[call.entries].segment * columns, teams = merge_warps / team;
  const int rank = warp_index() % team;  // in the team
  const int heads = call.query_heads / call.kv_heads;
  const int row = static_cast<int>(blockIdx.x) * teams + warp_index() / team;
  if (row >= rows) return;
  const int slot_segment = row / columns, column = row % columns;
  const int index = find_entry(starts, call.entries, slot_segment, &EntryStart::segment);
  const BatchEntry entry = call.batch[index];
  const EntryShape shape(call, entry, exact_tiles);
  const int segment = slot_segment - starts[index].segment;
  const int head = segment / shape.tiles, tile = call.first_tile + segment % shape.tiles;
  const int query = tile * column_count + column;  // of the entry and KV head
  if (query >= entry.tokens * heads) return;
  const SegmentSlots slots(units, busy, starts[index].unit + segment * shape.units, shape);
  wait_for_launches();
  Sums sums = add_slots<HeadDim>(call, slots, slot_segment, column, rank, team);
  if (team > 1) {
    parts[rank][lane_index()] = sums;
    __syncthreads();
  }
  if (rank > 0) return;
#pragma unroll 1
  for (int other = 1; other < team; ++other) sums.add(parts[other][lane_index()]);
  if constexpr (Rotated) rotate_quads<HeadDim>(sums.packed);
  auto *out = reinterpret_cast<DeviceElementOf<S> *>(
      call.out.row(entry.first_row + query / heads, head * heads + query % heads));
  const float inverse = 1 / sums.weight;
#pragma unroll
  for (int i = 0; i < Sums::count; ++i) {
    if (!sums.has(i)) continue;
    const float4 e = sums.exact[i], p = sums.packed[i];
    const float of_quad[4] = {e.x + p.x, e.y + p.y, e.z + p.z, e.w + p.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      out[sums.quad(i) * 4 + j] = static_cast<DeviceElementOf<S>>(of_quad[j] * inverse);
    }
  }
}

}  // namespace squat::cuda
