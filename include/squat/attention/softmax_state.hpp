#pragma once

// Softmax over scores that arrive in runs (online softmax, Milakov and
// Gimelshein, 2018).

#include <Eigen/Core>
#include <cmath>
#include <limits>

#include "squat/config.hpp"

namespace squat {

/// The running maximum and sum of exponentials of one query row. The output it
/// belongs to is sum_t exp(score_t - maximum) value_t, to be divided by `sum`
/// at the end.
struct SoftmaxState {
  float maximum = -std::numeric_limits<float>::infinity();
  float sum = 0;

  /// Takes in `count` scores, which become exp(score - maximum), and returns
  /// the factor by which what was accumulated before has to be multiplied.
  /// count = 0 changes nothing.
  float update(float *scores, Index count) {
    if (count == 0) return 1.0f;
    Eigen::Map<Eigen::ArrayXf> run(scores, count);
    const float previous = maximum;
    maximum = std::max(maximum, run.maxCoeff());
    run = (run - maximum).exp();
    const float factor = std::exp(previous - maximum);
    sum = sum * factor + run.sum();
    return factor;
  }
};

}  // namespace squat
