#pragma once

// What becomes of scores before their softmax: Options::soft_cap, alibi_slopes.

#include <algorithm>
#include <numeric>

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

/// c tanh(s / c) of scores s, to 5e-7 c: 2 c / (1 + e^(-2 s / c)) - c.
class SoftCap {
 public:
  explicit SoftCap(float cap)
      : cap_(broadcast(cap)), twice_(broadcast(2 * cap)), steps_(broadcast(-2.88539008f / cap)) {}

  FloatVector operator()(FloatVector score) const {
    // Beside a power past 2^60, and its cap, 1 is nothing.
    const FloatVector power = power_of_two(lesser_of(score * steps_, broadcast(60)));
    return twice_ * reciprocal(broadcast(1) + power) - cap_;
  }

 private:
  FloatVector cap_, twice_, steps_;
};

/// Scores of a row, [count], become what the rule makes of them. distance: from the first token to the
/// row's own; slope: of the row's query head.
inline void bend_scores(const ScoreRule &rule, float slope, Index distance, float *scores, Index count) {
  const Index vectors = count / float_lanes * float_lanes;
  // bend(x, i): of the scores from i on. Those behind the last whole vector come as one.
  const auto bend_all = [&](auto &&bend) {
    for (Index i = 0; i < vectors; i += float_lanes)
      store_floats(scores + i, bend(load_floats(scores + i), i));
    if (vectors == count) return;
    alignas(FloatVector) float rest[float_lanes] = {};
    std::copy(scores + vectors, scores + count, rest);
    store_floats(rest, bend(load_floats(rest), vectors));
    std::copy_n(rest, count - vectors, scores + vectors);
  };
  if (rule.soft_cap > 0)
    bend_all([cap = SoftCap(rule.soft_cap)](FloatVector x, Index) { return cap(x); });
  if (rule.slopes == nullptr) return;
  alignas(FloatVector) float lane_numbers[float_lanes];
  std::iota(lane_numbers, lane_numbers + float_lanes, 0.0f);
  const FloatVector first = load_floats(lane_numbers) - broadcast(static_cast<float>(distance));
  bend_all([&](FloatVector x, Index i) {
    return multiply_add(broadcast(slope), first + broadcast(static_cast<float>(i)), x);
  });
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
