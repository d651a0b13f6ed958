#pragma once

// Attention to a context in parts, on the device: see cache/merge_attention.hpp.

#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>

#include "squat/cuda/kernels/elements.cuh"
#include "squat/cuda/kernels/launch_behind.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/state/device_state.cuh"
#include "squat/parallel/context_partials.hpp"

namespace squat::cuda {

template <class S>
struct MergePartsCall {
  const std::byte *blocks;  ///< of all parts
  detail::PartialShape shape;
  long long first_row;
  DeviceTensor<S> out;
  DeviceTensor<float> lse;   ///< data is null: not asked for
  const float *sink_logits;  ///< [heads], which every part's lse has; null: there are none
};

/// What a part's lse is filled with before it has seen anything: all bits set, which no kernel writes.
inline constexpr int unseen_byte = 0xff;

__device__ inline bool has_seen(float lse) {
  return __float_as_uint(lse) != 0xffffffffu && lse != -INFINITY;
}

/// out = sum_p w_p out_p / W with w_p = exp(lse_p - max_p lse_p), W = sum_p w_p; lse = max + log W.
/// Where every part's lse has the logit s of a sink, W is without exp(s - max) but once. A block a head
/// of a row. Every thread adds up all parts' weights, in the same order on every rank.
template <class S>
__global__ void merge_parts(MergePartsCall<S> call) {
  wait_for_launches();
  const detail::PartialShape &shape = call.shape;
  const long long place = call.first_row * shape.heads + blockIdx.x, row = place / shape.heads;
  const int head = static_cast<int>(place % shape.heads);
  const auto block = [&](int part) { return call.blocks + shape.begin_of(part); };
  const auto lse = [&](int part) { return reinterpret_cast<const float *>(block(part))[place]; };
  float most = -INFINITY;
  for (int part = 0; part < shape.parts; ++part) {
    if (has_seen(lse(part))) most = fmaxf(most, lse(part));
  }
  float weight = 0;
  int seen = 0;
  for (int part = 0; part < shape.parts; ++part) {
    if (!has_seen(lse(part))) continue;
    weight += expf(lse(part) - most);
    ++seen;
  }
  if (call.sink_logits != nullptr && seen > 1)
    weight -= static_cast<float>(seen - 1) * expf(call.sink_logits[head] - most);
  const float inverse = weight == 0 ? 0 : 1 / weight;
  for (int channel = static_cast<int>(threadIdx.x); channel < shape.value_dim;
       channel += static_cast<int>(blockDim.x)) {
    float sum = 0;
    for (int part = 0; part < shape.parts; ++part) {
      if (!has_seen(lse(part))) continue;
      const auto *out = reinterpret_cast<const S *>(block(part) + shape.lse_bytes);
      sum += expf(lse(part) - most) * load_element(out + place * shape.value_dim + channel);
    }
    store_element(call.out.row(row, head) + channel, sum * inverse);
  }
  if (threadIdx.x == 0 && call.lse.data != nullptr) *call.lse.row(row, head) = most + logf(weight);
}

template <class S>
void launch_merge_parts(const MergePartsCall<S> &call, Index rows, cudaStream_t stream) {
  if (rows == 0) return;
  constexpr int threads = 128;
  launch_behind("attend", merge_parts<S>, static_cast<unsigned>(rows * call.shape.heads), threads, 0,
                stream, launches_overlap(), call);
}

}  // namespace squat::cuda
