#pragma once

// Sums of a query row over slots, in the registers of a warp: exact rows' apart from packed ones', which
// may be in the Hadamard rotation.

#include <cuda_runtime.h>

#include "squat/cuda/kernels/hadamard_signs.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// The lane, of which nothing is computed ahead: what follows a long loop takes no registers of it.
__device__ inline int volatile_lane() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

/// What sums are relative to before a score was seen.
inline constexpr float no_reference = -1e30f;

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
  __device__ static int quad(int i) { return i * warp_lanes + volatile_lane(); }

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

/// Turns the signs of the HeadDim channels that a warp's lanes have, quad i warp_lanes + lane each.
template <int HeadDim, int Count>
__device__ inline void turn_quad_signs(float4 (&x)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const int channel = RowSums<HeadDim>::quad(i) * 4;
    const auto sign = [&](int j) { return hadamard_sign<HeadDim>(channel + j); };
    x[i] = {x[i].x * sign(0), x[i].y * sign(1), x[i].z * sign(2), x[i].w * sign(3)};
  }
}

/// Multiplies them by the Hadamard matrix.
template <int HeadDim, int Count>
__device__ inline void multiply_quads(float4 (&x)[Count]) {
  constexpr int block = HeadDim & -HeadDim, quads = block / 4;
  static_assert(quads <= warp_lanes || quads == Count * warp_lanes);
  const float scale = rsqrtf(static_cast<float>(block));
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const float4 pairs = {x[i].x + x[i].y, x[i].x - x[i].y, x[i].z + x[i].w, x[i].z - x[i].w};
    x[i] = {pairs.x + pairs.z, pairs.y + pairs.w, pairs.x - pairs.z, pairs.y - pairs.w};
#pragma unroll 1
    for (int step = 1; step < quads && step < warp_lanes; step *= 2) {
      const float sign = (volatile_lane() & step) != 0 ? -1.0f : 1.0f;
      const auto meet = [&](float own) { return own * sign + __shfl_xor_sync(0xffffffffu, own, step); };
      x[i] = {meet(x[i].x), meet(x[i].y), meet(x[i].z), meet(x[i].w)};
    }
    x[i] = RowSums<HeadDim>::scaled(x[i], scale);
  }
  if constexpr (quads > warp_lanes) {
#pragma unroll
    for (int span = 1; span < Count; span *= 2) {
#pragma unroll
      for (int i = 0; i < Count; ++i) {
        if ((i & span) != 0) continue;
        const float4 low = x[i], high = x[i + span];
        RowSums<HeadDim>::add(x[i], high, 1);
        x[i + span] = low;
        RowSums<HeadDim>::add(x[i + span], high, -1);
      }
    }
  }
}

/// See rotate_hadamard().
template <int HeadDim, int Count>
__device__ inline void rotate_quads(float4 (&x)[Count]) {
  turn_quad_signs<HeadDim>(x);
  multiply_quads<HeadDim>(x);
}
/// Its inverse.
template <int HeadDim, int Count>
__device__ inline void rotate_quads_back(float4 (&x)[Count]) {
  multiply_quads<HeadDim>(x);
  turn_quad_signs<HeadDim>(x);
}

}  // namespace squat::cuda
