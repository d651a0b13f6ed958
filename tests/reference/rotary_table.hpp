#pragma once

// Rotary embeddings of models.

#include <cmath>

#include "squat/coding/rotary_table.hpp"
#include "squat/core/config.hpp"

namespace squat::test {

/// The table of a model that turns the first `channels` of its rows, of frequencies base^(-i /
/// channels).
inline RotaryTable rotary_table(double base, Index channels,
                                RotaryPairs pairs = RotaryPairs::interleaved) {
  RotaryTable rotary{.pairs = pairs};
  for (Index i = 0; i < channels; i += 2) {
    rotary.inverse_frequencies.push_back(
        static_cast<float>(std::pow(base, -static_cast<double>(i) / static_cast<double>(channels))));
  }
  return rotary;
}

}  // namespace squat::test
