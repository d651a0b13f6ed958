#pragma once

// Symmetric mid-rise codes of one row: x ~ scale * (code - (2^bits - 1) / 2),
// one float16 scale.

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "squat/config.hpp"
#include "squat/quantize/affine.hpp"

namespace squat {

/// What a code's integer is counted from: level = code -
/// symmetric_offset(bits).
constexpr float symmetric_offset(int bits) { return static_cast<float>((1 << bits) - 1) / 2; }

namespace detail {

/// The step of the uniform quantiser of least squared error for a unit Gaussian
/// (Max, 1960, table II).
constexpr float gaussian_step(int bits) {
  switch (bits) {
    case 2:
      return .9957f;
    case 3:
      return .586f;
    case 4:
      return .3352f;
    default:
      return .0308f;  // 8 bits
  }
}

template <class Row>
auto symmetric_codes(const Row &x, float scale, int bits) {
  const float levels = static_cast<float>(1 << bits);
  return (x / scale + levels / 2).max(0.0f).min(levels - 1).floor();
}

}  // namespace detail

/// Codes one row x [n], a rotated value, into `codes` [n] and returns its
/// scale: the multiple of the row's RMS of least squared error, times gain =
/// <x, x> / <x, x^>, held to [1, 2], which makes the coded row unbiased along
/// x. Attention averages such errors away; shrinkage it would keep.
inline half quantize_symmetric(Eigen::Map<const Eigen::ArrayXf> x, int bits, std::uint8_t *codes) {
  constexpr std::array<float, 6> factors = {.8f, .9f, 1.0f, 1.1f, 1.25f, 1.4f};
  const float offset = symmetric_offset(bits);
  const float squares = x.square().sum();
  const float rms = std::sqrt(squares / static_cast<float>(x.size())) + 1e-12f;
  float best = rms, least = std::numeric_limits<float>::infinity();
  for (float factor : factors) {
    const float scale = rms * detail::gaussian_step(bits) * factor;
    const float error = (scale * (detail::symmetric_codes(x, scale, bits) - offset) - x).square().sum();
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  Eigen::Map<Eigen::Array<std::uint8_t, Eigen::Dynamic, 1>> stored(codes, x.size());
  stored = detail::symmetric_codes(x, best, bits).cast<std::uint8_t>();
  const float products = best * (x * (stored.cast<float>() - offset)).sum();
  const float gain = std::clamp(squares / std::max(products, 1e-12f), 1.0f, 2.0f);
  return to_half_saturated(best * gain);
}

}  // namespace squat
