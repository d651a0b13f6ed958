#pragma once

// How the next token is chosen.

#include <Eigen/Core>
#include <random>

namespace engine {

/// The most likely token at temperature 0, otherwise one drawn from softmax(logits / temperature).
inline int sample(const Eigen::RowVectorXf &logits, double temperature, std::mt19937_64 &random) {
  Eigen::Index best = 0;
  const float most = logits.maxCoeff(&best);
  if (temperature <= 0) return static_cast<int>(best);
  const Eigen::ArrayXd weights = ((logits.array() - most).cast<double>() / temperature).exp();
  std::discrete_distribution<int> choose(weights.begin(), weights.end());
  return choose(random);
}

}  // namespace engine
