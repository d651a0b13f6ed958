#pragma once

// What becomes of scores before their softmax: Options::soft_cap, alibi_slopes.

#include <algorithm>

#include "squat/core/config.hpp"
#include "squat/cpu/kernels/float_vector.hpp"
#include "squat/cpu/kernels/softmax.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// The same for all rows of a KV head.
struct ScoreRule {
  float soft_cap = 0;             ///< 0: none
  const float *slopes = nullptr;  ///< of the query heads; null: none
  Index window = 0;               ///< newest tokens that a row sees; 0: all

  bool bends() const { return soft_cap > 0 || slopes != nullptr; }
};

/// tanh(x), to 2e-7: of |x|, (1 - p) / (1 + p) with p = e^(-2 |x|).
inline FloatVector tanh_of(FloatVector x) {
  const FloatVector zero = broadcast(0), magnitude = greater_of(x, zero - x);
  const FloatVector power = power_of_two(magnitude * broadcast(-2.88539008f));
  const FloatVector result = (broadcast(1) - power) / (broadcast(1) + power);
  // 1, -1 or 0: a quotient, for lanes have no comparison here.
  const FloatVector sign = x / greater_of(magnitude, broadcast(1e-30f));
  return result * sign;
}

/// Scores of a row, [count], become what the rule makes of them. distance: from the first token to the
/// row's own; slope: of the row's query head.
inline void bend_scores(const ScoreRule &rule, float slope, Index distance, float *scores, Index count) {
  const Index vectors = count / float_lanes * float_lanes;
  if (rule.soft_cap > 0) {
    const FloatVector cap = broadcast(rule.soft_cap), inverse = broadcast(1 / rule.soft_cap);
    for (Index i = 0; i < vectors; i += float_lanes)
      store_floats(scores + i, cap * tanh_of(load_floats(scores + i) * inverse));
    if (vectors < count) {
      alignas(FloatVector) float rest[float_lanes] = {};
      std::copy(scores + vectors, scores + count, rest);
      store_floats(rest, cap * tanh_of(load_floats(rest) * inverse));
      std::copy_n(rest, count - vectors, scores + vectors);
    }
  }
  if (rule.slopes == nullptr) return;
  for (Index i = 0; i < count; ++i) scores[i] -= slope * static_cast<float>(distance - i);
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
