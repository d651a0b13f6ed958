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
  float inverse_cap;         ///< 1 / soft_cap
  std::int32_t window;       ///< newest tokens that a row sees; 0: all
  const float *slopes;       ///< [query heads]; null: none
  const float *sink_logits;  ///< [query heads], of the layer; null: none

  __host__ __device__ bool bends() const { return soft_cap > 0 || slopes != nullptr; }

  /// Of a query head.
  __device__ float slope(int head) const { return slopes != nullptr ? __ldg(slopes + head) : 0.0f; }

  /// A score `distance` tokens from the query's own.
  __device__ float bent(float score, float slope, int distance) const {
    if (soft_cap > 0) score = capped(score);
    return slopes == nullptr ? score : fmaf(-slope, static_cast<float>(distance), score);
  }

  /// Scores `distance`, `distance` - Step, ... tokens from the query's own.
  template <int Step>
  __device__ float4 bent(float4 x, float slope, int distance) const {
    if (soft_cap > 0) x = {capped(x.x), capped(x.y), capped(x.z), capped(x.w)};
    if (slopes == nullptr) return x;
    const auto lowered = [&](float score, int by) {
      return fmaf(-slope, static_cast<float>(distance - by), score);
    };
    return {lowered(x.x, 0), lowered(x.y, Step), lowered(x.z, 2 * Step), lowered(x.w, 3 * Step)};
  }

  /// c tanh(score / c).
  __device__ float capped(float score) const {
    const float ratio = score * inverse_cap;
    return fabsf(ratio) <= small_ratio ? score * small_factor(ratio)
                                       : soft_cap * hyperbolic_tangent(ratio);
  }

  /// By two special functions: off by 1e-7 at most, which is much of one near 0.
  __device__ static float hyperbolic_tangent(float ratio) {
    const float p = power_of_two(-2 * log2_e * fabsf(ratio));  // e^(-2 |ratio|)
    return copysignf(__fdividef(1 - p, 1 + p), ratio);
  }

  /// tanh(ratio) / ratio of a ratio up to small_ratio, as of most scores, which are far below their cap:
  /// a polynomial of least relative error in its square, 5e-7, takes no special functions.
  __device__ static float small_factor(float ratio) {
    const float square = ratio * ratio;
    float factor = fmaf(.0129848939f, square, -.0501186284f);
    factor = fmaf(factor, square, .132611822f);
    factor = fmaf(factor, square, -.333285003f);
    return fmaf(factor, square, .999999479f);
  }
  static constexpr float small_ratio = .75f;

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

/// Caps a warp's scores, which are over their row's unit, a power of two; a lane has Rows rows, and
/// for_each(visit) calls visit(score, row) for each of its scores. One vote says whether all are small,
/// so that none has a branch of its own.
template <int Rows, class ForEach>
__device__ inline void cap_scores(const ScoreRule &rule, const float (&units)[Rows],
                                  ForEach &&for_each) {
  float inverses[Rows], largest[Rows], most = 0;  // inverses: of caps over units
#pragma unroll
  for (int i = 0; i < Rows; ++i) inverses[i] = units[i] * rule.inverse_cap, largest[i] = 0;
  for_each([&](float score, int row) { largest[row] = fmaxf(largest[row], fabsf(score)); });
#pragma unroll
  for (int i = 0; i < Rows; ++i) most = fmaxf(most, largest[i] * inverses[i]);
  if (__any_sync(0xffffffffu, most > ScoreRule::small_ratio)) {
    float caps[Rows];
#pragma unroll
    for (int i = 0; i < Rows; ++i) caps[i] = rule.soft_cap * inverse_of_power(units[i]);
    for_each([&](float &score, int row) {
      score = caps[row] * ScoreRule::hyperbolic_tangent(score * inverses[row]);
    });
  } else {
    for_each([&](float &score, int row) { score *= ScoreRule::small_factor(score * inverses[row]); });
  }
}

/// The natural logarithm of a sum of powers of two.
__device__ inline float natural_logarithm(float reference, float weight) {
  return (reference + log2f(weight)) * 0.6931471805599453f;
}

}  // namespace squat::cuda
