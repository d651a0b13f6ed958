#pragma once

// What errors in packed keys and values would do to attention outputs, of queries that see no pages yet:
// the sums of coding/attention_weights.hpp, on the device.
//
// A block has a query row; each of its warps meets every fourth token that the row sees, key and value
// at once, a lane with the channels lane, lane + 32, ... of both: p_s = 2^(score_s - the largest so
// far), and sums over p and p^2, which are rescaled when the largest changes. What warps have found is
// added up in shared memory. Reads 2 HeadDim elements a token and row; rows of a token are neighbours in
// the grid.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/coding/observation.hpp"
#include "squat/coding/query_statistics.hpp"
#include "squat/cuda/kernels/elements.cuh"
#include "squat/cuda/kernels/score_rule.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Rows of some tokens of a sequence without pages, and what they see.
template <class S>
struct WeighCall {
  DeviceTensor<const S> q, k, v;             ///< of the call
  DeviceTensor<const float> past_k, past_v;  ///< what the cache holds: `past` tokens
  long long first_row;                       ///< of the call's first token in its tensors
  std::int32_t past;                         ///< tokens before the call
  std::int32_t first, tokens;                ///< of the call: those whose rows are weighed
  std::int32_t query_heads, heads_per_kv_head;
  std::int32_t sinks, residual;  ///< see FarTokens
  std::int32_t bases;            ///< that queries are turned back by
  float scale;                   ///< of attention
  float *weighed;                ///< [tokens, query_heads, HeadDim]: queries times roots of weights
  float4 *sums;                  ///< [tokens, query_heads]: far or not, w, e, |o|^2
};

inline constexpr int weigh_warps = 4;

/// What a warp has found.
template <int HeadDim>
struct WeighedRow {
  static constexpr int count = HeadDim / warp_lanes;

  float largest = -INFINITY, sum = 0, far_squares = 0, far_norms = 0;
  float output[count] = {}, far_output[count] = {};

  __device__ void raise(float to) {
    const float factor = largest == -INFINITY ? 0.0f : power_of_two(largest - to);
    largest = to;
    sum *= factor;
    far_squares *= factor * factor;
    far_norms *= factor * factor;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      output[i] *= factor;
      far_output[i] *= factor * factor;
    }
  }
};

/// Grid: query heads, tokens. T: what the cache keeps rows as.
template <int HeadDim, class T, class S>
__global__ void __launch_bounds__(weigh_warps *warp_lanes) weigh_attention(WeighCall<S> call) {
  using Row = WeighedRow<HeadDim>;
  __shared__ float of_warps[weigh_warps][4], outputs[weigh_warps][2][HeadDim];
  const int head = static_cast<int>(blockIdx.x), token = static_cast<int>(blockIdx.y);
  const int lane = lane_index(), kv_head = head / call.heads_per_kv_head;
  const int index = call.past + call.first + token;
  constexpr int all = Observation::all_weighed, step = Observation::weighed_step;
  const int tokens = index < all ? 1 : index % step == 0 ? step : 0;  // Observation::weighed_tokens()
  const long long place = static_cast<long long>(token) * call.query_heads + head;
  const S *query = call.q.row(call.first_row + call.first + token, head);
  float *const to = call.weighed + place * HeadDim;
  if (tokens == 0) {
    for (int i = static_cast<int>(threadIdx.x); i < HeadDim; i += weigh_warps * warp_lanes) to[i] = 0;
    if (threadIdx.x == 0) call.sums[place] = {0, 0, 0, 0};
    return;
  }
  float q[Row::count];
#pragma unroll
  for (int i = 0; i < Row::count; ++i)
    q[i] = load_element(query + lane + i * warp_lanes) * (call.scale * log2_e);
  const int far_end = index - call.residual + 1;
  Row row;
#pragma unroll 1
  for (int s = warp_index(); s <= index; s += weigh_warps) {
    float key[Row::count], value[Row::count];
    if (s < call.past) {
      const float *k = call.past_k.row(s, kv_head) + lane, *v = call.past_v.row(s, kv_head) + lane;
#pragma unroll
      for (int i = 0; i < Row::count; ++i) {
        key[i] = k[i * warp_lanes];
        value[i] = v[i * warp_lanes];
      }
    } else {
      const long long at = call.first_row + s - call.past;
      const S *k = call.k.row(at, kv_head) + lane, *v = call.v.row(at, kv_head) + lane;
      const auto kept = [](const S *from) {
        return element_value<T>(element_bits<T>(load_element(from)));
      };
#pragma unroll
      for (int i = 0; i < Row::count; ++i) {
        key[i] = kept(k + i * warp_lanes);
        value[i] = kept(v + i * warp_lanes);
      }
    }
    float score = 0, norm = 0;
#pragma unroll
    for (int i = 0; i < Row::count; ++i) {
      score = fmaf(q[i], key[i], score);
      norm = fmaf(value[i], value[i], norm);
    }
    score = sum_lanes<1>(score);
    norm = sum_lanes<1>(norm);
    if (score > row.largest) row.raise(score);
    const float p = power_of_two(score - row.largest);
    const float far = s >= call.sinks && s < far_end ? p * p : 0.0f;
    row.sum += p;
    row.far_squares += far;
    row.far_norms = fmaf(far, norm, row.far_norms);
#pragma unroll
    for (int i = 0; i < Row::count; ++i) {
      row.output[i] = fmaf(p, value[i], row.output[i]);
      row.far_output[i] = fmaf(far, value[i], row.far_output[i]);
    }
  }
  if (lane == 0) of_warps[warp_index()][0] = row.largest;
  __syncthreads();
  float largest = of_warps[0][0];
#pragma unroll
  for (int warp = 1; warp < weigh_warps; ++warp) largest = fmaxf(largest, of_warps[warp][0]);
  row.raise(largest);
#pragma unroll
  for (int i = 0; i < Row::count; ++i) {
    outputs[warp_index()][0][lane + i * warp_lanes] = row.output[i];
    outputs[warp_index()][1][lane + i * warp_lanes] = row.far_output[i];
  }
  if (lane == 0) {
    of_warps[warp_index()][1] = row.sum;
    of_warps[warp_index()][2] = row.far_squares;
    of_warps[warp_index()][3] = row.far_norms;
  }
  __syncthreads();
  float of_all[4] = {};
#pragma unroll
  for (int warp = 0; warp < weigh_warps; ++warp) {
#pragma unroll
    for (int i = 1; i < 4; ++i) of_all[i] += of_warps[warp][i];
  }
  const float inverse = 1 / of_all[1];
  float square = 0, product = 0;
#pragma unroll
  for (int i = 0; i < Row::count; ++i) {
    float output = 0, far_output = 0;
#pragma unroll
    for (int warp = 0; warp < weigh_warps; ++warp) {
      output += outputs[warp][0][lane + i * warp_lanes];
      far_output += outputs[warp][1][lane + i * warp_lanes];
    }
    output *= inverse;
    square = fmaf(output, output, square);
    product = fmaf(output, far_output * inverse * inverse, product);
  }
  square = sum_lanes<1>(square);
  product = sum_lanes<1>(product);
  const float far_norm = of_all[3] * inverse * inverse, far_square = of_all[2] * inverse * inverse;
  const float of_key = fmaxf(far_norm - 2 * product + far_square * square, 0.0f);
  const auto times = static_cast<float>(tokens);
  const float weight = times * call.scale * call.scale * of_key;
  const float factor = sqrtf(weight / static_cast<float>(call.bases));
  for (int i = static_cast<int>(threadIdx.x); i < HeadDim; i += weigh_warps * warp_lanes)
    to[i] = load_element(query + i) * factor;
  if (threadIdx.x == 0)
    call.sums[place] = {far_end > call.sinks ? times : 0.0f, weight, times * far_norm, times * square};
}

/// Adds them to the sums of their KV heads, in their order. A warp a KV head.
template <class Sum>
__global__ void add_weights(const float4 *sums, int tokens, int query_heads, int heads_per_kv_head,
                            HeadSums layout, Sum *all_sums) {
  const int head = static_cast<int>(blockIdx.x), rows = tokens * heads_per_kv_head;
  Sum all[4] = {};
  for (int i = lane_index(); i < rows; i += warp_lanes) {
    const float4 own =
        sums[i / heads_per_kv_head * query_heads + head * heads_per_kv_head + i % heads_per_kv_head];
    all[0] += own.x, all[1] += own.y, all[2] += own.z, all[3] += own.w;
  }
#pragma unroll
  for (Sum &sum : all) {
    for (int step = 1; step < warp_lanes; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  }
  if (lane_index() != 0) return;
  Sum *to = all_sums + head * layout.doubles;
  to[layout.far_queries.first] += all[0];
  to[layout.key_weight.first] += all[1];
  to[layout.value_weight.first] += all[2];
  to[layout.output_square.first] += all[3];
}

}  // namespace squat::cuda
