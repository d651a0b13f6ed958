#pragma once

// What becomes of scores before and in their softmax: Options::attention_window, soft_cap, alibi_slopes,
// sink_logits. Scores, caps, slopes and logits are times log2 e.

#include <cstdint>

#include "squat/cuda/kernels/row_sums.cuh"
#include "squat/cuda/kernels/warp.cuh"

namespace squat::cuda {

inline constexpr float log2_e = 1.4426950408889634f;

struct ScoreRule {
  float soft_cap;            ///< 0: none
  std::int32_t window;       ///< newest tokens that a row sees; 0: all
  const float *slopes;       ///< [query heads]; null: none
  const float *sink_logits;  ///< [query heads], of the layer; null: none

  __host__ __device__ bool bends() const { return soft_cap > 0 || slopes != nullptr; }

  /// Of a query head.
  __device__ float slope(int head) const { return slopes != nullptr ? __ldg(slopes + head) : 0.0f; }

  /// A score `distance` tokens from the query's own.
  __device__ float bent(float score, float slope, int distance) const {
    if (soft_cap > 0) {
      // tanh(x) of |x|: (1 - p) / (1 + p), p = e^(-2 |x|).
      const float p = power_of_two(fabsf(score) * __fdividef(-2 * log2_e, soft_cap));
      score = copysignf(soft_cap * __fdividef(1 - p, 1 + p), score);
    }
    return fmaf(-slope, static_cast<float>(distance), score);
  }

  /// Scores `distance`, `distance` - 8, ... tokens from the query's own.
  __device__ float4 bent(float4 x, float slope, int distance) const {
    return {bent(x.x, slope, distance), bent(x.y, slope, distance - 8), bent(x.z, slope, distance - 16),
            bent(x.w, slope, distance - 24)};
  }

  /// The first position that a row sees which sees those below `limit`.
  __device__ int first_seen(int limit) const { return window > 0 ? max(limit - window, 0) : 0; }

  /// Takes a head's sink logit into a row's softmax. reference, weight: of its sum of powers. Returns
  /// what the row's sums are to be multiplied by.
  __device__ float add_sink(int head, float &reference, float &weight) const {
    if (sink_logits == nullptr) return 1;
    const float logit = __ldg(sink_logits + head), to = fmaxf(reference, logit);
    const float factor = power_of_two(reference - to);
    weight = fmaf(weight, factor, power_of_two(logit - to));
    reference = to;
    return factor;
  }
};

/// The natural logarithm of a sum of powers of two.
__device__ inline float natural_logarithm(float reference, float weight) {
  return (reference + log2f(weight)) * 0.6931471805599453f;
}

}  // namespace squat::cuda
