#pragma once

// Softmax over scores that arrive in runs (online softmax, Milakov and
// Gimelshein, 2018).

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// The running maximum and sum of exponentials of one query row. The output it
/// belongs to is sum_t exp(score_t - maximum) value_t, to be divided by `sum`
/// at the end.
struct SoftmaxState {
  float maximum = -std::numeric_limits<float>::infinity();
  float sum = 0;

  /// Makes the maximum at least `score`. Returns the factor by which what was
  /// accumulated before has to be multiplied; the sum already is.
  float raise(float score) {
    const float previous = std::exchange(maximum, std::max(maximum, score));
    const float factor = maximum > previous ? std::exp(previous - maximum) : 1.0f;
    sum *= factor;
    return factor;
  }

  /// Takes in what another state has seen. Returns the factors by which this
  /// one's and the other's outputs have to be multiplied before they are added.
  std::pair<float, float> merge(const SoftmaxState &other) {
    if (other.sum == 0) return {1.0f, 0.0f};
    const float own = raise(other.maximum);
    const float others = std::exp(other.maximum - maximum);
    sum += other.sum * others;
    return {own, others};
  }
};

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
