#pragma once

// The matrix of a subspace basis as it is rounded: the definition of the basis that every backend and
// every snapshot shares.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat {

/// A matrix [outputs, inputs] of whole numbers and scales. Entry (o, i) is code * scale[o] of words, and
/// (code - 127.5) * scale[o] * input_scale[i] of bytes, worked out in float in this order.
struct RoundedMatrix {
  Index outputs = 0;
  Index inputs = 0;
  bool bytes = false;               ///< codes are 0 to 255, else 16-bit words
  std::vector<std::int16_t> codes;  ///< [outputs, inputs]
  std::vector<float> scales;        ///< [outputs]
  std::vector<float> input_scales;  ///< [inputs], of bytes alone

  bool empty() const { return codes.empty(); }

  float entry(Index output, Index input) const {
    const auto o = static_cast<std::size_t>(output), i = static_cast<std::size_t>(input);
    const auto code = static_cast<float>(codes[o * static_cast<std::size_t>(inputs) + i]);
    return bytes ? (code - 127.5f) * scales[o] * input_scales[i] : code * scales[o];
  }

  /// The transpose, [inputs, outputs].
  void write_transposed(float *to) const {
    for (Index input = 0; input < inputs; ++input) {
      for (Index output = 0; output < outputs; ++output) *to++ = entry(output, input);
    }
  }

  std::size_t size_bytes() const {
    return codes.size() * sizeof(std::int16_t) + (scales.size() + input_scales.size()) * sizeof(float);
  }
};

inline namespace SQUAT_CPU_NAMESPACE {

/// Rounds to words. Entries of an output are scaled until their absolute sum is below 2^16, so that
/// products with rows of 15 bits and a sign add up to less than 2^31.
inline RoundedMatrix round_to_words(const Eigen::MatrixXd &matrix) {
  const Index outputs = matrix.rows(), inputs = matrix.cols();
  RoundedMatrix rounded{outputs,
                        inputs,
                        false,
                        std::vector<std::int16_t>(static_cast<std::size_t>(outputs * inputs)),
                        std::vector<float>(static_cast<std::size_t>(outputs)),
                        {}};
  for (Index output = 0; output < outputs; ++output) {
    double sum = 0, largest = 0;
    for (Index input = 0; input < inputs; ++input) {
      sum += std::abs(matrix(output, input));
      largest = std::max(largest, std::abs(matrix(output, input)));
    }
    if (!(largest > 1e-30)) continue;
    const Index pairs = (inputs + 1) / 2;  // rounding adds up to as much
    const double most = 65535 - static_cast<double>(pairs);
    const double steps = std::min(most / sum, 32767 / largest);
    rounded.scales[static_cast<std::size_t>(output)] = static_cast<float>(1 / steps);
    for (Index input = 0; input < inputs; ++input) {
      rounded.codes[static_cast<std::size_t>(output * inputs + input)] =
          static_cast<std::int16_t>(std::nearbyint(matrix(output, input) * steps));
    }
  }
  return rounded;
}

/// Rounds to bytes. widths: how far each input ranges, [inputs], which evens the inputs out first.
inline RoundedMatrix round_to_bytes(const Eigen::MatrixXd &matrix, const std::vector<double> &widths) {
  const Index outputs = matrix.rows(), inputs = matrix.cols();
  RoundedMatrix rounded{outputs,
                        inputs,
                        true,
                        std::vector<std::int16_t>(static_cast<std::size_t>(outputs * inputs)),
                        std::vector<float>(static_cast<std::size_t>(outputs)),
                        std::vector<float>(static_cast<std::size_t>(inputs))};
  const auto even = [&](Index output, Index input) {
    return matrix(output, input) * widths[static_cast<std::size_t>(input)];
  };
  for (Index output = 0; output < outputs; ++output) {
    double largest = 0;
    for (Index input = 0; input < inputs; ++input)
      largest = std::max(largest, std::abs(even(output, input)));
    const double scale = std::max(largest / 127.5, 1e-30);
    rounded.scales[static_cast<std::size_t>(output)] = static_cast<float>(scale);
    for (Index input = 0; input < inputs; ++input) {
      const double code = std::nearbyint(even(output, input) / scale + 127.5);
      rounded.codes[static_cast<std::size_t>(output * inputs + input)] =
          static_cast<std::int16_t>(std::clamp(code, 0.0, 255.0));
    }
  }
  for (Index input = 0; input < inputs; ++input) {
    const auto i = static_cast<std::size_t>(input);
    rounded.input_scales[i] = static_cast<float>(1 / widths[i]);
  }
  return rounded;
}

}  // namespace SQUAT_CPU_NAMESPACE

}  // namespace squat
