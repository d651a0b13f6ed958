#pragma once

// Adds up what blocks found out about the rows of a segment in one chunk, and what chunks before came to;
// behind the last chunk it writes the output. A warp a row, 2 HeadDim bytes a slot.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "squat/cuda/exact_tiles.cuh"
#include "squat/cuda/merge.cuh"
#include "squat/cuda/row_call.cuh"
#include "squat/cuda/running_softmax.cuh"

namespace squat::cuda {

/// sums += one warp's part of a row's slots.
template <int HeadDim, class S>
__device__ inline void add_row_slots(const RowCall<S> &rows, const SegmentSlots &slots, int tile_rows,
                                     int segment, int row, RowSums<HeadDim> &sums) {
  using Sums = RowSums<HeadDim>;
#pragma unroll 2
  for (int i = 0; i < slots.count(); ++i) {
    const bool packed = slots.is_packed(i);
    const std::uint8_t *slot =
        row_slot<HeadDim>(rows, tile_rows, segment, slots.worker(i), packed);
    const float logarithm = reinterpret_cast<const float *>(slot + tile_rows * HeadDim * 2)[row];
    float4 parts[Sums::count];
#pragma unroll
    for (int k = 0; k < Sums::count; ++k) {
      if (!Sums::has(k)) continue;
      const uint2 x = reinterpret_cast<const uint2 *>(slot + row * HeadDim * 2)[Sums::quad(k)];
      const float2 low = __half22float2(as_halves(x.x)), high = __half22float2(as_halves(x.y));
      parts[k] = {low.x, low.y, high.x, high.y};
    }
    if (logarithm <= RunningSoftmax::nothing) continue;
    sums.raise(logarithm);
    const float factor = power_of_two(logarithm - sums.reference);
    const float of_packed = packed ? factor : 0.0f, of_exact = factor - of_packed;
    sums.weight += factor;
#pragma unroll
    for (int k = 0; k < Sums::count; ++k) {
      if (!Sums::has(k)) continue;
      Sums::add(sums.exact[k], parts[k], of_exact);
      Sums::add(sums.packed[k], parts[k], of_packed);
    }
  }
}

/// Merges the slots of every query row of a launch. Rotated: values of pages are in their Hadamard
/// rotation. workers, tile_rows, step_tiles, page_steps: of the attention's launch.
template <int HeadDim, bool Rotated, class S>
__global__ void __launch_bounds__(merge_threads)
    merge_rows(const RowCall<S> rows, int workers, int tile_rows, int step_tiles, int page_steps) {
  using Sums = RowSums<HeadDim>;
  extern __shared__ RowStart row_starts[];
  const AttendCall<S> &call = rows.call;
  allow_next_launch();
  find_row_starts(rows, tile_rows, step_tiles, page_steps, row_starts);
  wait_for_launches();
  const int units = row_starts[call.entries].unit, busy = busy_workers(units, workers);
  const int all = row_starts[call.entries].segment * tile_rows;
  const int heads = call.query_heads / call.kv_heads;
  const int index = static_cast<int>(blockIdx.x) * merge_warps + warp_index();
  if (index >= all) return;
  const int slot_segment = index / tile_rows, row = index % tile_rows;
  const int e = find_entry(row_starts, call.entries, slot_segment, &RowStart::segment);
  const RowStart start = row_starts[e];
  const BatchEntry entry = call.batch[e];
  const RowShape shape(rows, entry, start.page, tile_rows, step_tiles, page_steps);
  const int segment = slot_segment - start.segment;
  const int head = segment / shape.tiles, tile = call.first_tile + segment % shape.tiles;
  const int query = tile * tile_rows + row;  // of the entry and KV head
  if (query >= call.rows(entry)) return;
  Sums sums;
  sums.clear();
  if (shape.units > 0) {
    const SegmentSlots slots(units, busy, start.unit + segment * shape.units, shape);
    add_row_slots<HeadDim>(rows, slots, tile_rows, slot_segment, row, sums);
  }
  if constexpr (Rotated) rotate_quads<HeadDim>(sums.packed);
#pragma unroll
  for (int i = 0; i < Sums::count; ++i) Sums::add(sums.exact[i], sums.packed[i], 1);
  // Of chunks before and for those behind: outputs, then logarithms, as in slots.
  float *own = rows.sums + static_cast<std::size_t>(slot_segment) * row_sum_floats(HeadDim, tile_rows);
  auto *quads = reinterpret_cast<float4 *>(own + row * HeadDim);
  float &logarithm = own[tile_rows * HeadDim + row];
  if (rows.first_page > 0 && logarithm > RunningSoftmax::nothing) {
    sums.raise(logarithm);
    const float factor = power_of_two(logarithm - sums.reference);
    sums.weight += factor;
#pragma unroll
    for (int i = 0; i < Sums::count; ++i) {
      if (Sums::has(i)) Sums::add(sums.exact[i], quads[Sums::quad(i)], factor);
    }
  }
  const float inverse = sums.weight > 0 ? 1 / sums.weight : 0.0f;
  __syncwarp();
  if (rows.last_chunk == 0) {
#pragma unroll
    for (int i = 0; i < Sums::count; ++i) {
      if (Sums::has(i)) quads[Sums::quad(i)] = Sums::scaled(sums.exact[i], inverse);
    }
    if (lane_index() == 0) {
      logarithm =
          sums.weight > 0 ? sums.reference + log2f(sums.weight) : RunningSoftmax::nothing;
    }
    return;
  }
  auto *out = reinterpret_cast<DeviceElementOf<S> *>(
      call.out.row(entry.first_row + query / heads, head * heads + query % heads));
#pragma unroll
  for (int i = 0; i < Sums::count; ++i) {
    if (!Sums::has(i)) continue;
    const float4 x = Sums::scaled(sums.exact[i], inverse);
    const float of_quad[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      out[Sums::quad(i) * 4 + j] = static_cast<DeviceElementOf<S>>(of_quad[j]);
    }
  }
}

}  // namespace squat::cuda
