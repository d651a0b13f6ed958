#pragma once

// Symmetric mid-rise codes of one row: x ~ scale * (code - (2^bits - 1) / 2),
// one float16 scale.

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "squat/coding/affine.hpp"
#include "squat/coding/chunks.hpp"
#include "squat/coding/codes.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {}  // namespace squat::inline SQUAT_CPU_NAMESPACE

namespace squat::detail::inline SQUAT_CPU_NAMESPACE {

/// The step of the uniform quantiser of least squared error for a unit Gaussian
/// (Max, 1960, table II).
constexpr float gaussian_step(int bits) {
  switch (bits) {
    case 1:
      return 1.5958f;
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

/// As integers, in floats.
inline Chunk symmetric_codes(const Chunk &x, float inverse_scale, int bits) {
  // Between two levels, floor(y + levels / 2) is what rounding y + offset gives.
  return round_to_even((x * inverse_scale + middle_code(bits)).max(0.0f).min(2 * middle_code(bits)));
}

}  // namespace squat::detail::inline SQUAT_CPU_NAMESPACE

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Codes one row x [count], a rotated value, into `codes` [count] and returns its
/// scale: the multiple of the row's RMS of least squared error, times gain =
/// <x, x> / <x, x^>, held to [.5, 2], which makes the coded row unbiased along
/// x. Attention averages such errors away; shrinkage it would keep.
template <class Scalar>
half quantize_symmetric(const Scalar *x, Index count, int bits, std::uint8_t *codes) {
  constexpr std::array<float, 6> factors = {.8f, .9f, 1.0f, 1.1f, 1.25f, 1.4f};
  const float offset = middle_code(bits);
  const auto row = [&](Index i) { return load_chunk(x + i); };
  const float squares = sum_chunks(count, [&](Index i) -> Chunk { return row(i).square(); }).sum();
  const float rms = std::sqrt(squares / static_cast<float>(count)) + 1e-12f;
  float best = rms, least = std::numeric_limits<float>::infinity();
  constexpr std::size_t together = 3;
  for (std::size_t first = 0; first < factors.size(); first += together) {
    std::array<float, together> scales, inverses;
    for (std::size_t n = 0; n < together; ++n) {
      scales[n] = rms * detail::gaussian_step(bits) * factors[first + n];
      inverses[n] = 1 / scales[n];
    }
    const auto errors = sum_terms<together>(count, [&](Index i, int n) -> Chunk {
      const float scale = scales[static_cast<std::size_t>(n)];
      const Chunk code = detail::symmetric_codes(row(i), inverses[static_cast<std::size_t>(n)], bits);
      return (scale * (code - offset) - row(i)).square();
    });
    for (std::size_t n = 0; n < together; ++n) {
      if (errors[n] >= least) continue;
      least = errors[n];
      best = scales[n];
    }
  }
  const float inverse = 1 / best;
  const float products = best * sum_chunks(count, [&](Index i) -> Chunk {
                                  const Chunk code = detail::symmetric_codes(row(i), inverse, bits);
                                  store_codes(code, codes + i);
                                  return row(i) * (code - offset);
                                }).sum();
  const float gain = std::clamp(squares / std::max(products, 1e-12f), .5f, 2.0f);
  return to_half_saturated(best * gain);
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
