#pragma once

// Asymmetric codes of one group: x ~ zero + scale * code, zero and scale in
// float16.

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

#include "squat/coding/chunks.hpp"
#include "squat/coding/coding.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

struct AffineScale {
  half zero;
  half scale;
};

/// The nearest float16, the largest finite one for what lies beyond.
inline half to_half_saturated(float value) {
  constexpr float largest = 65504.0f;
  return half(std::clamp(value, -largest, largest));
}

/// float16's least positive number.
inline constexpr float smallest_scale = 6e-8f;

}  // namespace squat::inline SQUAT_CPU_NAMESPACE

namespace squat::detail::inline SQUAT_CPU_NAMESPACE {

/// Fractions of the min-max range tried at 2 bits; half of them at 1 bit, which has no levels between.
inline constexpr std::array<float, 11> clip_fractions = {1.0f, .95f, .9f, .85f, .8f, .75f,
                                                         .7f,  .65f, .6f, .55f, .5f};
/// What codes of a width count, and their zero and scale as floats.
struct AffineCodes {
  AffineCodes(AffineScale fit, float top_code)
      : zero(static_cast<float>(fit.zero)),
        scale(static_cast<float>(fit.scale)),
        inverse(1.0f / scale),
        top(top_code) {}

  /// As integers, in floats.
  Chunk codes(const Chunk &x) const { return round_to_even(((x - zero) * inverse).max(0.0f).min(top)); }
  Chunk error(const Chunk &x, const Chunk &code) const { return zero + scale * code - x; }

  float zero, scale, inverse, top;
};

inline AffineScale affine_range(float middle, float half_width, float top) {
  return {to_half_saturated(middle - half_width),
          std::max(to_half_saturated(2 * half_width / top), half(smallest_scale))};
}

struct Extremes {
  float low, high;
};

template <class Scalar>
Extremes extremes(const Scalar *x, Index count) {
  Chunk low = load_chunk(x), high = low;
  for (Index i = chunk_size; i < count; i += chunk_size) {
    low = low.min(load_chunk(x + i));
    high = high.max(load_chunk(x + i));
  }
  return {low.minCoeff(), high.maxCoeff()};
}

/// The range about the middle of x, `fraction` times as wide as x.
inline AffineScale fraction_range(Extremes x, float fraction, float top) {
  return affine_range((x.low + x.high) / 2, (x.high - x.low) / 2 * fraction, top);
}

/// The squared error of x in that range.
template <class Scalar>
float range_error(const Scalar *x, Index count, AffineScale fit, float top) {
  const AffineCodes range(fit, top);
  return sum_chunks(count,
                    [&](Index i) -> Chunk {
                      const Chunk group = load_chunk(x + i);
                      return range.error(group, range.codes(group)).square();
                    })
      .sum();
}

/// The clipped range of least squared error among clip_fractions.
template <class Scalar>
AffineScale search_clip(const Scalar *x, Index count, float top) {
  constexpr std::size_t together = 4;
  const Extremes all = extremes(x, count);
  AffineScale best{};
  float least = std::numeric_limits<float>::infinity();
  for (std::size_t first = 0; first < clip_fractions.size(); first += together) {
    const auto fit = [&](std::size_t n) {  // the last fraction fills the last four up
      const float fraction = clip_fractions[std::min(first + n, clip_fractions.size() - 1)];
      return fraction_range(all, top > 1 ? fraction : fraction / 2, top);
    };
    const std::array<AffineCodes, together> ranges = {AffineCodes(fit(0), top), AffineCodes(fit(1), top),
                                                      AffineCodes(fit(2), top),
                                                      AffineCodes(fit(3), top)};
    const auto errors = sum_terms<together>(count, [&](Index i, int n) -> Chunk {
      const AffineCodes &range = ranges[static_cast<std::size_t>(n)];
      const Chunk group = load_chunk(x + i);
      return range.error(group, range.codes(group)).square();
    });
    for (std::size_t n = 0; n < together; ++n) {
      if (errors[n] >= least) continue;
      least = errors[n];
      best = fit(n);
    }
  }
  return best;
}

/// Rescales about the group's mean by gain = sum dx dx / sum dx dq, held to [1,
/// 2], so that the error is orthogonal to the group. Least squares alone
/// shrinks large values, and attention weighs exactly those.
template <class Scalar>
AffineScale apply_gain(const Scalar *x, Index count, const std::uint8_t *codes, AffineScale fit) {
  const float scale = static_cast<float>(fit.scale);
  const float size = static_cast<float>(count);
  const auto [sum, code_sum] = sum_terms<2>(count, [&](Index i, int n) -> Chunk {
    return n == 0 ? load_chunk(x + i) : load_codes(codes + i);
  });
  const float mean = sum / size, code_mean = code_sum / size;
  const auto [squares, code_products] = sum_terms<2>(count, [&](Index i, int n) -> Chunk {
    const Chunk deviation = load_chunk(x + i) - mean;
    return deviation * (n == 0 ? deviation : Chunk(load_codes(codes + i) - code_mean));
  });
  const float products = scale * code_products;
  const float gain = std::clamp(squares / std::max(products, 1e-12f), 1.0f, 2.0f);
  return {to_half_saturated(mean - gain * scale * code_mean), to_half_saturated(gain * scale)};
}

}  // namespace squat::detail::inline SQUAT_CPU_NAMESPACE

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Codes one group x [count] into `codes` [count], a multiple of 16. The range is the
/// group's extremes as in KIVI (Liu et al., 2024, section 3); clip search and
/// gain are ours.
template <class Scalar>
AffineScale quantize_affine(const Scalar *x, Index count, int bits, AffineFit method,
                            std::uint8_t *codes) {
  const float top = static_cast<float>((1 << bits) - 1);
  const AffineScale fit = method == AffineFit::clip_and_gain && bits <= 2
                              ? detail::search_clip(x, count, top)
                              : detail::fraction_range(detail::extremes(x, count), 1, top);
  const detail::AffineCodes range(fit, top);
  for_each_chunk(count, [&](Index i) { store_codes(range.codes(load_chunk(x + i)), codes + i); });
  if (method == AffineFit::minmax) return fit;
  return detail::apply_gain(x, count, codes, fit);
}

/// The same, and what the codes stand for into `rounded` [count], which may be x
/// itself.
template <class Scalar>
AffineScale quantize_affine(const Scalar *x, Index count, int bits, AffineFit method,
                            std::uint8_t *codes, Scalar *rounded) {
  const AffineScale fit = quantize_affine(x, count, bits, method, codes);
  const float zero = static_cast<float>(fit.zero), scale = static_cast<float>(fit.scale);
  for_each_chunk(
      count, [&](Index i) { Eigen::Map<Chunk>(rounded + i) = zero + scale * load_codes(codes + i); });
  return fit;
}

/// The squared error of coded values.
template <class Scalar>
Scalar affine_error(const Scalar *x, Index count, const std::uint8_t *codes, AffineScale fit) {
  const float zero = static_cast<float>(fit.zero), scale = static_cast<float>(fit.scale);
  return sum_chunks(count,
                    [&](Index i) -> Chunk {
                      return (zero + scale * load_codes(codes + i) - load_chunk(x + i)).square();
                    })
      .sum();
}

/// The squared error of one number for all values.
template <class Scalar>
Scalar constant_error(const Scalar *x, Index count, Scalar value) {
  return sum_chunks(count, [&](Index i) -> Chunk { return (load_chunk(x + i) - value).square(); }).sum();
}

/// The squared error that AffineFit::minmax would make.
template <class Scalar>
Scalar minmax_error(const Scalar *x, Index count, int bits) {
  const float top = static_cast<float>((1 << bits) - 1);
  const AffineScale fit = detail::fraction_range(detail::extremes(x, count), 1, top);
  return detail::range_error(x, count, fit, top);
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
