#pragma once

// Asymmetric codes of one group: x ~ zero + scale * code, zero and scale in
// float16.

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

#include "squat/config.hpp"
#include "squat/quantize/coding.hpp"

namespace squat {

struct AffineScale {
  half zero;
  half scale;
};

/// The nearest float16, the largest finite one for what lies beyond.
inline half to_half_saturated(float value) {
  constexpr float largest = 65504.0f;
  return half(std::clamp(value, -largest, largest));
}

/// x rounded to the nearest integer, ties to even; needs |x| < 2^22. Adding 1.5
/// * 2^23 leaves no fraction bits, on every machine and in every vector width.
template <class Array>
auto round_to_even(const Array &x) {
  constexpr float magic = 12582912.0f;
  return (x + magic) - magic;
}

/// float16's least positive number.
inline constexpr float smallest_scale = 6e-8f;

namespace detail {

/// Fractions of the min-max range tried at 2 bits.
inline constexpr std::array<float, 11> clip_fractions = {1.0f, .95f, .9f, .85f, .8f, .75f,
                                                         .7f,  .65f, .6f, .55f, .5f};
/// Codes of x for a given zero and scale, as floats in [0, top].
template <class Group>
auto affine_codes(const Group &x, AffineScale fit, float top) {
  const float zero = static_cast<float>(fit.zero);
  const float inverse = 1.0f / static_cast<float>(fit.scale);
  return round_to_even(((x - zero) * inverse).max(0.0f).min(top));
}

inline AffineScale affine_range(float middle, float half_width, float top) {
  return {to_half_saturated(middle - half_width),
          std::max(to_half_saturated(2 * half_width / top), half(smallest_scale))};
}

/// The range from the least to the largest of x.
template <class Group>
AffineScale minmax_range(const Group &x, float top) {
  const float low = x.minCoeff(), high = x.maxCoeff();
  return affine_range((low + high) / 2, (high - low) / 2, top);
}

/// The squared error of x in that range.
template <class Group>
float range_error(const Group &x, AffineScale fit, float top) {
  const float zero = static_cast<float>(fit.zero), scale = static_cast<float>(fit.scale);
  return (zero + scale * affine_codes(x, fit, top) - x).square().sum();
}

/// The clipped range of least squared error among clip_fractions.
template <class Group>
AffineScale search_clip(const Group &x, float top) {
  const float low = x.minCoeff(), high = x.maxCoeff();
  AffineScale best{};
  float least = std::numeric_limits<float>::infinity();
  for (float fraction : clip_fractions) {
    const AffineScale fit = affine_range((low + high) / 2, (high - low) / 2 * fraction, top);
    const float error = range_error(x, fit, top);
    if (error < least) {
      least = error;
      best = fit;
    }
  }
  return best;
}

/// Rescales about the group's mean by gain = sum dx dx / sum dx dq, held to [1,
/// 2], so that the error is orthogonal to the group. Least squares alone
/// shrinks large values, and attention weighs exactly those.
template <class Group, class Codes>
AffineScale apply_gain(const Group &x, const Codes &codes, AffineScale fit) {
  const float scale = static_cast<float>(fit.scale);
  const float mean = x.mean(), code_mean = codes.mean();
  const float squares = (x - mean).square().sum();
  const float products = ((x - mean) * (codes - code_mean)).sum() * scale;
  const float gain = std::clamp(squares / std::max(products, 1e-12f), 1.0f, 2.0f);
  return {to_half_saturated(mean - gain * scale * code_mean), to_half_saturated(gain * scale)};
}

}  // namespace detail

/// Codes one group x [n] into `codes` [n]. The range is the group's extremes as
/// in KIVI (Liu et al., 2024, section 3); clip search and gain are ours.
inline AffineScale quantize_affine(Eigen::Map<const Eigen::ArrayXf> x, int bits, AffineFit method,
                                   std::uint8_t *codes) {
  const float top = static_cast<float>((1 << bits) - 1);
  const AffineScale fit = method == AffineFit::clip_and_gain && bits == 2 ? detail::search_clip(x, top)
                                                                          : detail::minmax_range(x, top);
  Eigen::Map<Eigen::Array<std::uint8_t, Eigen::Dynamic, 1>> stored(codes, x.size());
  stored = detail::affine_codes(x, fit, top).cast<std::uint8_t>();
  if (method == AffineFit::minmax) return fit;
  return detail::apply_gain(x, stored.cast<float>(), fit);
}

/// The same, and what the codes stand for into `rounded` [n], which may be x
/// itself.
inline AffineScale quantize_affine(Eigen::Map<const Eigen::ArrayXf> x, int bits, AffineFit method,
                                   std::uint8_t *codes, Eigen::Map<Eigen::ArrayXf> rounded) {
  const AffineScale fit = quantize_affine(x, bits, method, codes);
  const Eigen::Map<Eigen::Array<std::uint8_t, Eigen::Dynamic, 1>> stored(codes, x.size());
  rounded = static_cast<float>(fit.zero) + static_cast<float>(fit.scale) * stored.cast<float>();
  return fit;
}

/// The squared error of coded values.
inline float affine_error(Eigen::Map<const Eigen::ArrayXf> x, const std::uint8_t *codes,
                          AffineScale fit) {
  const Eigen::Map<const Eigen::Array<std::uint8_t, Eigen::Dynamic, 1>> stored(codes, x.size());
  const float zero = static_cast<float>(fit.zero), scale = static_cast<float>(fit.scale);
  return (zero + scale * stored.cast<float>() - x).square().sum();
}

/// The squared error that AffineFit::minmax would make.
inline float minmax_error(Eigen::Map<const Eigen::ArrayXf> x, int bits) {
  const float top = static_cast<float>((1 << bits) - 1);
  return detail::range_error(x, detail::minmax_range(x, top), top);
}

}  // namespace squat
