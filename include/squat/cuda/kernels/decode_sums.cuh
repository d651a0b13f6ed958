#pragma once

// What the warps of a team, and then the pieces of a segment, come to.
//
// A team's warps have the same rows and different tokens: they add up in shared memory, by their
// references, each warp then one row. A piece leaves that in a slot of the workspace, exact rows apart
// from pages, for packed values may be rotated.

#include <cstddef>
#include <cstdint>

#include "squat/cuda/kernels/barrier_copy.cuh"
#include "squat/cuda/kernels/decode_memory.cuh"
#include "squat/cuda/kernels/decode_work.cuh"
#include "squat/cuda/kernels/row_sums.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// A part of a slot, of exact rows or of pages: sums of the rows' channels, then what they are relative
/// to, a power of two, then the sums of their weights. A reference of -infinity: there is nothing.
template <int HeadDim>
struct DecodeSlot {
  static constexpr int references = team_rows * HeadDim;
  static constexpr int weights = references + team_rows;
  static constexpr int part = weights + team_rows;  // floats
  static constexpr int floats = 2 * part;
};

/// Adds up the warps of a team and writes to a part of a slot. sums, references: offsets in shared
/// memory, [warp, row, row_floats] and [warp, 2, row]. Of its lane, a warp has the reference of row t,
/// its weight, and value(j, i), that of channel 16 j + 8 i + g. Begins and ends with barriers.
template <int HeadDim, class Value>
__device__ inline void add_warps(int sums, int row_floats, int references, int barrier, int warp,
                                 float reference, float weight, float *part, Value &&value) {
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
  const int to = sums + ((warp * team_rows + t) * row_floats + g) * 4;
#pragma unroll
  for (int j = 0; j < HeadDim / 16; ++j) {
    shared_at<float>(to + 64 * j) = value(j, 0) * factor;
    shared_at<float>(to + 64 * j + 32) = value(j, 1) * factor;
  }
  sync_threads(barrier, team_threads);
  using Sums = RowSums<HeadDim>;
#pragma unroll
  for (int i = 0; i < Sums::count; ++i) {
    if (!Sums::has(i)) continue;
    float4 sum = {0, 0, 0, 0};
#pragma unroll
    for (int k = 0; k < team_warps; ++k) {
      const int row = sums + (k * team_rows + warp) * row_floats * 4;
      Sums::add(sum, shared_at<const float4>(row + Sums::quad(i) * 16), 1);
    }
    reinterpret_cast<float4 *>(part + warp * HeadDim)[Sums::quad(i)] = sum;
  }
  if (lane == 0) {
    const float most = most_of(warp);
    float all = 0;
#pragma unroll
    for (int k = 0; k < team_warps; ++k) {
      all += weight_of(k, warp) * power_of_two(reference_of(k, warp) - most);
    }
    part[DecodeSlot<HeadDim>::references + warp] = most;
    part[DecodeSlot<HeadDim>::weights + warp] = all;
  }
  sync_threads(barrier, team_threads);
}

/// A part of a slot that nothing belongs to; of one row.
template <int HeadDim>
__device__ inline void write_nothing(float *part, int row) {
  if (volatile_lane() == 0) part[DecodeSlot<HeadDim>::references + row] = -INFINITY;
}

/// Adds up row `row` of `count` slots, `stride` floats apart, by a warp. What they are relative to is
/// read of 32 slots at once, then their sums, many on their way.
template <int HeadDim>
__device__ inline void add_decode_slots(RowSums<HeadDim> &sums, int row, const float *slots,
                                        std::size_t stride, int count) {
  using Slot = DecodeSlot<HeadDim>;
  using Sums = RowSums<HeadDim>;
  constexpr int together = 16 / Sums::count;
#pragma unroll 1
  for (int first = 0; first < count; first += warp_lanes) {
    const int lane = lane_index();
    const float *own = slots + static_cast<std::size_t>(min(first + lane, count - 1)) * stride;
    float references[2], weights[2];
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      references[part] = __ldcg(own + part * Slot::part + Slot::references + row);
      weights[part] = __ldcg(own + part * Slot::part + Slot::weights + row);
      if (first + lane >= count) references[part] = -INFINITY;
    }
    sums.raise(largest_lane<1>(fmaxf(references[0], references[1])));
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const bool is = references[part] != -INFINITY;  // else what is there may be no number
      const float factor = is ? power_of_two(references[part] - sums.reference) : 0.0f;
      sums.weight += sum_lanes<1>(is ? weights[part] * factor : 0.0f);
      const unsigned all = __ballot_sync(0xffffffffu, is);
      const float *from =
          slots + static_cast<std::size_t>(first) * stride + part * Slot::part + row * HeadDim;
#pragma unroll 1
      for (int i = 0; all >> i != 0 && i < warp_lanes; i += together, from += together * stride) {
        float4 quads[together][Sums::count];
#pragma unroll
        for (int j = 0; j < together; ++j) {
#pragma unroll
          for (int k = 0; k < Sums::count; ++k) {
            quads[j][k] = {0, 0, 0, 0};
            if ((all >> (i + j) & 1) != 0 && Sums::has(k)) {
              quads[j][k] = __ldcg(reinterpret_cast<const float4 *>(from + j * stride) + Sums::quad(k));
            }
          }
        }
#pragma unroll
        for (int j = 0; j < together; ++j) {
          const float own_factor = __shfl_sync(0xffffffffu, factor, i + j);
#pragma unroll
          for (int k = 0; k < Sums::count; ++k) {
            Sums::add(part == 0 ? sums.exact[k] : sums.packed[k], quads[j][k], own_factor);
          }
        }
      }
    }
  }
}

}  // namespace squat::cuda
