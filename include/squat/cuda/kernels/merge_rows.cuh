#pragma once

// Adds up what blocks found out about the rows of a segment in one chunk, and what chunks before came
// to; behind the last chunk it writes the output. 2 HeadDim bytes a row and slot, which are on their way
// together: a warp has eight slots of a row in flight, and where rows are few, all warps of a block
// share one.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "squat/cuda/kernels/row_call.cuh"
#include "squat/cuda/kernels/row_sums.cuh"
#include "squat/cuda/kernels/segment_slots.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/exact_tiles.cuh"

namespace squat::cuda {

inline constexpr int merge_warps = 8;
inline constexpr int merge_threads = merge_warps * warp_lanes;

/// sums += slots first, first + step, ... of a row: `together` of them on their way at a time.
template <int HeadDim, class S>
__device__ inline void add_row_slots(const RowCall<S> &rows, const SegmentSlots &slots, int tile_rows,
                                     int segment, int row, int first, int step, RowSums<HeadDim> &sums) {
  using Sums = RowSums<HeadDim>;
  constexpr int together = HeadDim > 128 ? 4 : 8;
#pragma unroll 1
  for (int begin = first; begin < slots.count(); begin += together * step) {
    float logarithms[together];
    uint2 parts[together][Sums::count];
#pragma unroll
    for (int j = 0; j < together; ++j) {
      const int i = begin + j * step;
      logarithms[j] = no_reference;
      if (i >= slots.count()) continue;
      const std::uint8_t *slot =
          row_slot<HeadDim>(rows, tile_rows, segment, slots.worker(i), slots.is_packed(i));
      logarithms[j] = reinterpret_cast<const float *>(slot + tile_rows * HeadDim * 2)[row];
#pragma unroll
      for (int k = 0; k < Sums::count; ++k) {
        if (!Sums::has(k)) continue;
        parts[j][k] = reinterpret_cast<const uint2 *>(slot + row * HeadDim * 2)[Sums::quad(k)];
      }
    }
    float most = logarithms[0];
#pragma unroll
    for (int j = 1; j < together; ++j) most = fmaxf(most, logarithms[j]);
    if (most <= no_reference) continue;
    sums.raise(most);
#pragma unroll
    for (int j = 0; j < together; ++j) {
      if (logarithms[j] <= no_reference) continue;
      const float factor = power_of_two(logarithms[j] - sums.reference);
      const float of_packed = slots.is_packed(begin + j * step) ? factor : 0.0f;
      sums.weight += factor;
#pragma unroll
      for (int k = 0; k < Sums::count; ++k) {
        if (!Sums::has(k)) continue;
        const float2 low = __half22float2(as_halves(parts[j][k].x));
        const float2 high = __half22float2(as_halves(parts[j][k].y));
        const float4 part = {low.x, low.y, high.x, high.y};
        Sums::add(sums.exact[k], part, factor - of_packed);
        Sums::add(sums.packed[k], part, of_packed);
      }
    }
  }
}

/// How a merge is dealt out: a row has `team` warps of a block, and a team `each` rows; team > 1 only
/// where each is 1.
struct MergeShape {
  int team, each;

  __host__ __device__ int block_rows() const { return merge_warps / team * each; }

  /// rows: of the launch. So many warps a processor that a few rows have many, and that many rows share
  /// what a block has to find out first.
  static MergeShape of(int rows, int processors) {
    const int warps = 32 * processors;
    MergeShape shape{1, 1};
    while (shape.team < merge_warps && rows * shape.team * 2 <= warps) shape.team *= 2;
    while (shape.each < 4 && rows >= 2 * shape.each * warps) shape.each *= 2;
    return shape;
  }
};

/// What a block of the merge has to find out about its rows, which are of one segment.
struct MergedSegment {
  BatchEntry entry;
  SegmentSlots slots;
  int head;
  int first_query;  // of the entry and KV head
};

/// Merges the slots of every query row of a launch. Rotated: values of pages are in their Hadamard
/// rotation. workers, tile_rows, step_tiles, page_steps: of the attention's launch.
template <int HeadDim, bool Rotated, class S>
__global__ void __launch_bounds__(merge_threads)
    merge_rows(const RowCall<S> rows, int workers, int tile_rows, int step_tiles, int page_steps,
               MergeShape shape) {
  using Sums = RowSums<HeadDim>;
  extern __shared__ RowStart row_starts[];
  __shared__ Sums parts[merge_warps][warp_lanes];
  __shared__ MergedSegment merged;
  const AttendCall<S> &call = rows.call;
  allow_next_launch();
  find_row_starts(rows, tile_rows, step_tiles, page_steps, row_starts);
  const int first_row = static_cast<int>(blockIdx.x) * shape.block_rows();  // of all
  const int segment = first_row / tile_rows;                                // of all
  if (segment >= row_starts[call.entries].segment) {
    wait_for_launches();
    return;
  }
  if (threadIdx.x == 0) {
    const RowStart all = row_starts[call.entries];
    const int busy = busy_row_workers(all.unit, all.segment, workers);
    const int e = find_entry(row_starts, call.entries, segment, &RowStart::segment);
    const RowStart start = row_starts[e];
    merged.entry = call.batch[e];
    RowShape of_entry(rows, merged.entry, start.page, tile_rows, step_tiles, page_steps);
    if constexpr (!Rotated) of_entry.exact_units = 0;  // slots are of both
    const int own = segment - start.segment;
    merged.head = own / of_entry.tiles;
    merged.first_query = (call.first_tile + own % of_entry.tiles) * tile_rows;
    merged.slots = of_entry.units > 0
                       ? SegmentSlots(all.unit, busy, start.unit + own * of_entry.units, of_entry)
                       : SegmentSlots();
  }
  __syncthreads();
  wait_for_launches();
  const int heads = call.heads_per_kv_head, all = call.rows(merged.entry);
  const int rank = warp_index() % shape.team;
  float *own = rows.sums + static_cast<std::size_t>(segment) * row_sum_floats(HeadDim, tile_rows);
#pragma unroll 1
  for (int i = 0; i < shape.each; ++i) {
    const int row = first_row % tile_rows + warp_index() / shape.team * shape.each + i;
    const int query = merged.first_query + row;
    // Of chunks before and for those behind: outputs, then logarithms, as in slots.
    auto *quads = reinterpret_cast<float4 *>(own + row * HeadDim);
    float &logarithm = own[tile_rows * HeadDim + row];
    const bool continues = rows.first_page > 0 && rank == 0 && query < all;
    float4 before[Sums::count];
    const float logarithm_before = continues ? logarithm : no_reference;
#pragma unroll
    for (int k = 0; k < Sums::count; ++k) {
      if (continues && Sums::has(k)) before[k] = quads[Sums::quad(k)];
    }
    Sums sums;
    sums.clear();
    if (query < all) {
      add_row_slots<HeadDim>(rows, merged.slots, tile_rows, segment, row, rank, shape.team, sums);
    }
    if (shape.team > 1) {
      parts[warp_index()][lane_index()] = sums;
      __syncthreads();
    }
    if (rank > 0 || query >= all) continue;
#pragma unroll 1
    for (int other = 1; other < shape.team; ++other) {
      const Sums &part = parts[warp_index() + other][lane_index()];
      if (part.weight > 0) sums.add(part);
    }
    if constexpr (Rotated) rotate_quads_back<HeadDim>(sums.packed);
#pragma unroll
    for (int k = 0; k < Sums::count; ++k) Sums::add(sums.exact[k], sums.packed[k], 1);
    if (logarithm_before > no_reference) {
      sums.raise(logarithm_before);
      const float factor = power_of_two(logarithm_before - sums.reference);
      sums.weight += factor;
#pragma unroll
      for (int k = 0; k < Sums::count; ++k) {
        if (Sums::has(k)) Sums::add(sums.exact[k], before[k], factor);
      }
    }
    __syncwarp();
    if (rows.last_chunk == 0) {
      const float inverse = sums.weight > 0 ? 1 / sums.weight : 0.0f;
#pragma unroll
      for (int k = 0; k < Sums::count; ++k) {
        if (Sums::has(k)) quads[Sums::quad(k)] = Sums::scaled(sums.exact[k], inverse);
      }
      if (lane_index() == 0) {
        logarithm = sums.weight > 0 ? sums.reference + log2f(sums.weight) : no_reference;
      }
      continue;
    }
    const int token = merged.entry.first_row + query / heads, of = merged.head * heads + query % heads;
    auto *out = reinterpret_cast<DeviceElementOf<S> *>(call.out.row(token, of));
    const float factor = call.rule.add_sink(of, sums.reference, sums.weight);
    const float inverse = sums.weight > 0 ? factor / sums.weight : 0.0f;
    if (call.lse.data != nullptr && lane_index() == 0)
      *call.lse.row(token, of) = natural_logarithm(sums.reference, sums.weight);
#pragma unroll
    for (int k = 0; k < Sums::count; ++k) {
      if (!Sums::has(k)) continue;
      const float4 x = Sums::scaled(sums.exact[k], inverse);
      const float of_quad[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        out[Sums::quad(k) * 4 + j] = static_cast<DeviceElementOf<S>>(of_quad[j]);
      }
    }
  }
}

}  // namespace squat::cuda
