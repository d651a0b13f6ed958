#pragma once

// Attention of a draft's rows to their paths, merged with what they have come to over what is cached.
//
// A warp has a query row and head, and walks from its token to the root, `together` tokens at a time,
// whose keys and values are on their way together. A lane has the channels lane, lane + 32, ... All is
// float but keys and values, which count as the cache would keep them. Reads 2 HeadDim elements a token
// of the path; blocks have heads of one row, which share what they read.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/cuda/error.hpp"
#include "squat/cuda/kernels/attend_call.cuh"
#include "squat/cuda/kernels/elements.cuh"
#include "squat/cuda/kernels/row_sums.cuh"
#include "squat/cuda/kernels/score_rule.cuh"
#include "squat/cuda/kernels/warp.cuh"

namespace squat::cuda {

inline constexpr int path_warps = 8;
inline constexpr int path_threads = path_warps * warp_lanes;

template <class S>
struct PathCall {
  AttendCall<S> call;  // batch, slots, counters and tiles are not read; out: what rows came to so far
  DeviceTensor<const S> k, v;
  DeviceTensor<const float> cached_lse;  // of what is cached, sinks' logits aside; perhaps call.lse
  std::int32_t rows;                     // of the tensors
};

/// The softmax of a row and its sum of values, in the registers of a warp.
template <int HeadDim>
struct PathSums {
  static constexpr int count = HeadDim / warp_lanes;
  static_assert(HeadDim % warp_lanes == 0);

  float reference = -INFINITY, weight = 0;
  float sum[count] = {};

  /// Makes the reference `to`, if that is larger, and finite by then.
  __device__ void raise(float to) {
    const float most = fmaxf(reference, to), factor = power_of_two(reference - most);
    reference = most;
    weight *= factor;
#pragma unroll
    for (float &x : sum) x *= factor;
  }
  /// Adds values of weight 2^logarithm together. value(i): in channel lane + 32 i.
  template <class Value>
  __device__ void add(float logarithm, Value &&value) {
    const float p = power_of_two(logarithm - reference);
    weight += p;
#pragma unroll
    for (int i = 0; i < count; ++i) sum[i] = fmaf(p, value(i), sum[i]);
  }
};

/// T: what the cache keeps rows as.
template <int HeadDim, class T, class S>
__global__ void __launch_bounds__(path_threads) attend_paths(const PathCall<S> paths) {
  using Sums = PathSums<HeadDim>;
  constexpr int together = 4;
  const AttendCall<S> &call = paths.call;
  const int lane = lane_index(), query_heads = call.kv_heads * call.heads_per_kv_head;
  const int index = static_cast<int>(blockIdx.x) * path_warps + warp_index();
  const int row = index / query_heads, head = index % query_heads;
  if (row >= paths.rows) return;
  const DraftRow own = call.draft[row];
  if (own.depth == 0) return;
  const int kv_head = head / call.heads_per_kv_head;
  const float slope = call.rule.slope(head);
  float query[Sums::count];
#pragma unroll
  for (int i = 0; i < Sums::count; ++i)
    query[i] = load_element(call.q.row(row, head) + lane + i * warp_lanes) * call.scale;
  Sums sums;
  const int seen = call.rule.window > 0 ? min(own.depth, call.rule.window) : own.depth;
  int token = row;  // the parent of the root is none, which nobody looks up
#pragma unroll 1
  for (int distance = 0; distance < seen; distance += together) {
    float scores[together], values[together][Sums::count], most = -INFINITY;
#pragma unroll
    for (int j = 0; j < together; ++j) {
      scores[j] = 0;
      const bool sees = distance + j < seen;
      const S *key = paths.k.row(sees ? token : row, kv_head) + lane;
      const S *value = paths.v.row(sees ? token : row, kv_head) + lane;
#pragma unroll
      for (int i = 0; i < Sums::count; ++i) {
        const auto kept = [&](const S *from) {
          return element_value<T>(element_bits<T>(load_element(from + i * warp_lanes)));
        };
        scores[j] = fmaf(query[i], kept(key), scores[j]);
        values[j][i] = kept(value);
      }
      if (sees) token = call.draft[token].parent;
    }
#pragma unroll
    for (int j = 0; j < together; ++j) {
      scores[j] = sum_lanes<1>(scores[j]);
      if (call.rule.bends()) scores[j] = call.rule.bent(scores[j], slope, distance + j);
      if (distance + j >= seen) scores[j] = -INFINITY;
      most = fmaxf(most, scores[j]);
    }
    sums.raise(most);
#pragma unroll
    for (int j = 0; j < together; ++j) sums.add(scores[j], [&](int i) { return values[j][i]; });
  }
  S *out = call.out.row(row, head) + lane;
  const float cached = own.cached != 0 ? *paths.cached_lse.row(row, head) * log2_e : no_reference;
  if (cached > no_reference) {  // else a window left nothing, and out is no number perhaps
    sums.raise(cached);
    sums.add(cached, [&](int i) { return load_element(out + i * warp_lanes); });
  }
  const float factor = call.rule.add_sink(head, sums.reference, sums.weight);
  const float inverse = factor / sums.weight;
#pragma unroll
  for (int i = 0; i < Sums::count; ++i) store_element(out + i * warp_lanes, sums.sum[i] * inverse);
  __syncwarp();  // all have read the lse
  if (call.lse.data != nullptr && lane == 0)
    *call.lse.row(row, head) = natural_logarithm(sums.reference, sums.weight);
}

/// call: its scale times log2 e.
template <int HeadDim, class T, class S>
void launch_attend_paths(const PathCall<S> &paths, cudaStream_t stream) {
  const int warps = paths.rows * paths.call.kv_heads * paths.call.heads_per_kv_head;
  if (warps == 0) return;
  attend_paths<HeadDim, T, S>
      <<<static_cast<unsigned>((warps + path_warps - 1) / path_warps), path_threads, 0, stream>>>(paths);
  check(cudaGetLastError(), "attention to paths");
}

}  // namespace squat::cuda
