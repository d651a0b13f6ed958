#pragma once

// What the warps of a team, then its exact rows and its pages, then the pieces of a segment come to.
//
// A team's warps have the same rows and different tokens: they add up in shared memory, by their
// references, each warp then one row. Sums are in the space of packed values, which may be the Hadamard
// rotation's; those of exact rows are taken there.

#include <cstddef>
#include <cstdint>

#include "squat/cuda/kernels/barrier_copy.cuh"
#include "squat/cuda/kernels/decode_memory.cuh"
#include "squat/cuda/kernels/decode_work.cuh"
#include "squat/cuda/kernels/row_sums.cuh"
#include "squat/cuda/kernels/shared_memory.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// What some tokens of a query row come to, in the registers of a warp, quads of channels as RowSums has
/// them. In memory: found_row_floats().
template <int HeadDim>
struct FoundRow {
  using Quads = RowSums<HeadDim>;
  static constexpr int count = Quads::count;

  float reference = -INFINITY;
  float weight = 0;
  float4 sum[count] = {};

  __device__ void raise(float to) {
    if (to == -INFINITY) return;
    const float factor = power_of_two(reference - to);
    reference = to;
    weight *= factor;
#pragma unroll
    for (int i = 0; i < count; ++i) sum[i] = Quads::scaled(sum[i], factor);
  }
  __device__ void add(const FoundRow &other) {
    if (other.reference == -INFINITY) return;
    raise(fmaxf(reference, other.reference));
    const float factor = power_of_two(other.reference - reference);
    weight = fmaf(other.weight, factor, weight);
#pragma unroll
    for (int i = 0; i < count; ++i) Quads::add(sum[i], other.sum[i], factor);
  }

  __device__ static FoundRow read(const float *row) {
    FoundRow found;
    found.reference = row[HeadDim];
    if (found.reference == -INFINITY) return found;
    found.weight = row[HeadDim + 1];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (Quads::has(i)) found.sum[i] = reinterpret_cast<const float4 *>(row)[Quads::quad(i)];
    }
    return found;
  }
  __device__ void write(float *row) const {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (Quads::has(i)) reinterpret_cast<float4 *>(row)[Quads::quad(i)] = sum[i];
    }
    if (volatile_lane() == 0) *reinterpret_cast<float2 *>(row + HeadDim) = {reference, weight};
  }
};

/// Channels in their own order, where PageLayout may have another.
struct ChannelOrder {
  __device__ static constexpr int row_channel(int row) { return row; }
};

/// Adds up the warps of a team, to row `warp` of theirs. sums, references: offsets in shared memory,
/// [warp, row, row_floats] and [warp, 2, row]. Of its lane, a warp has the reference of row t, its
/// weight, and value(j, i), that of row 16 j + 8 i + g of channels. Begins and ends with barriers.
template <int HeadDim, class Order, class Value>
__device__ inline FoundRow<HeadDim> add_warps(int sums, int row_floats, int references, int barrier,
                                              int warp, float reference, float weight, Value &&value) {
  const int lane = volatile_lane(), g = lane >> 2, t = lane & 3;
  weight = sum_lanes<4>(weight);
  const auto reference_of = [&](int k, int row) -> float & {
    return shared_at<float>(references + (k * 2 * team_rows + row) * 4);
  };
  const auto weight_of = [&](int k, int row) -> float & { return reference_of(k, row + team_rows); };
  if (g == 0) {
    reference_of(warp, t) = reference;
    weight_of(warp, t) = weight;
  }
  sync_threads(barrier, team_threads);
  const auto most_of = [&](int row) {
    float most = reference_of(0, row);
#pragma unroll
    for (int k = 1; k < team_warps; ++k) most = fmaxf(most, reference_of(k, row));
    return most;
  };
  const float factor = power_of_two(reference - most_of(t));
  const int to = sums + ((warp * team_rows + t) * row_floats + Order::row_channel(g)) * 4;
#pragma unroll
  for (int j = 0; j < HeadDim / 16; ++j) {
    shared_at<float>(to + 4 * Order::row_channel(16 * j)) = value(j, 0) * factor;
    shared_at<float>(to + 4 * Order::row_channel(16 * j + 8)) = value(j, 1) * factor;
  }
  sync_threads(barrier, team_threads);
  using Quads = RowSums<HeadDim>;
  FoundRow<HeadDim> found;
  found.reference = most_of(warp);
#pragma unroll
  for (int k = 0; k < team_warps; ++k) {
    found.weight += weight_of(k, warp) * power_of_two(reference_of(k, warp) - found.reference);
    const int row = sums + (k * team_rows + warp) * row_floats * 4;
#pragma unroll
    for (int i = 0; i < Quads::count; ++i) {
      if (!Quads::has(i)) continue;
      Quads::add(found.sum[i], shared_at<const float4>(row + Quads::quad(i) * 16), 1);
    }
  }
  sync_threads(barrier, team_threads);
  return found;
}

/// Adds up a row of `count` slots, `stride` floats apart, by a warp, many on their way at a time: as
/// many as there are where a head has 132 / 8 blocks.
template <int HeadDim>
__device__ inline FoundRow<HeadDim> add_slots(const float *rows, std::size_t stride, int count) {
  using Quads = RowSums<HeadDim>;
  constexpr int together = 17 / Quads::count;
  FoundRow<HeadDim> found;
#pragma unroll 1
  for (int first = 0; first < count; first += together, rows += together * stride) {
    const int lane = lane_index(), left = min(count - first, together);
    const float2 of_slot = __ldcg(reinterpret_cast<const float2 *>(
        rows + static_cast<std::size_t>(min(lane, left - 1)) * stride + HeadDim));
    float4 quads[together][Quads::count];
#pragma unroll
    for (int j = 0; j < together; ++j) {
#pragma unroll
      for (int k = 0; k < Quads::count; ++k) {
        quads[j][k] = {0, 0, 0, 0};
        if (j < left && Quads::has(k)) {
          quads[j][k] = __ldcg(reinterpret_cast<const float4 *>(rows + j * stride) + Quads::quad(k));
        }
      }
    }
    found.raise(fmaxf(found.reference, largest_lane<1>(of_slot.x)));
    const bool is = lane < left && of_slot.x != -INFINITY;
    const float factor = is ? power_of_two(of_slot.x - found.reference) : 0.0f;
    found.weight += sum_lanes<1>(of_slot.y * factor);
#pragma unroll
    for (int j = 0; j < together; ++j) {
      const float own_factor = __shfl_sync(0xffffffffu, factor, j);
#pragma unroll
      for (int k = 0; k < Quads::count; ++k) Quads::add(found.sum[k], quads[j][k], own_factor);
    }
  }
  return found;
}

}  // namespace squat::cuda
