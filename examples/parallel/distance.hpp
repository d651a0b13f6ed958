#pragma once

// How far outputs are from those of one cache.

#include <cmath>
#include <cstddef>
#include <vector>

/// The norm of the difference, as a share of what was expected.
template <class Scalar>
double distance(const std::vector<Scalar> &found, const std::vector<Scalar> &expected) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const auto a = static_cast<double>(found[i]), b = static_cast<double>(expected[i]);
    difference += (a - b) * (a - b);
    norm += b * b;
  }
  return std::sqrt(difference / norm);
}
