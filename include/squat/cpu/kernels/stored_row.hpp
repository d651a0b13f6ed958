#pragma once

// One row of a sequence's sinks or tail: to what it is kept as, and back.
//
// Rows of bytes, TailCoding::int8: rotated (coding/hadamard.hpp), in steps of their largest magnitude
// over 127. The step, float16, stands behind the elements.

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>

#include "squat/coding/affine.hpp"
#include "squat/coding/hadamard.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/cpu/kernels/float_vector.hpp"
#include "squat/cpu/kernels/vector.hpp"
#include "squat/cpu/stored_rows.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Elements of a row as it is kept.
template <RowElement Scalar>
constexpr Index row_elements(Index head_dim) {
  return std::same_as<Scalar, std::int8_t> ? head_dim + Index{sizeof(half)} : head_dim;
}

/// What the elements of a row of bytes count.
inline float row_step(const std::int8_t *row, Index head_dim) {
  std::uint16_t bits;
  std::memcpy(&bits, row + head_dim, sizeof bits);
  return static_cast<float>(Eigen::numext::bit_cast<half>(bits));
}

/// The row [head_dim] as it is kept, row_elements().
template <Element S, RowElement Scalar>
void store_row(const S *from, Index head_dim, Scalar *to) {
  if constexpr (std::same_as<Scalar, std::int8_t>) {
    constexpr float most = 127;
    std::array<float, largest_head_dim> x;
    convert_row(from, head_dim, x.data());
    rotate_hadamard(x.data(), head_dim);
    FloatVector largest = broadcast(0);
    for (Index i = 0; i < head_dim; i += float_lanes) {
      largest = greater_of(largest, magnitude(load_floats(x.data() + i)));
    }
    const half step = std::max(to_half_saturated(largest_lane(largest) / most), half(smallest_scale));
    const float inverse = 1.0f / static_cast<float>(step);
    for (Index i = 0; i < head_dim; ++i) {
      to[i] = static_cast<std::int8_t>(
          std::nearbyint(std::clamp(x[static_cast<std::size_t>(i)] * inverse, -most, most)));
    }
    std::memcpy(to + head_dim, &step, sizeof step);
  } else {
    convert_row(from, head_dim, to);
  }
}

/// The row back again, [head_dim].
template <RowElement Scalar>
void load_row(const Scalar *from, Index head_dim, float *to) {
  if constexpr (std::same_as<Scalar, std::int8_t>) {
    const FloatVector step = broadcast(row_step(from, head_dim));
    for (Index i = 0; i < head_dim; i += float_lanes) {
      store_floats(to + i, load_floats(from + i) * step);
    }
    rotate_hadamard_back(to, head_dim);
  } else {
    convert_row(from, head_dim, to);
  }
}

/// Rounds a row [head_dim] in place to what keeping it leaves.
template <RowElement Scalar>
void round_row(float *row, Index head_dim) {
  if constexpr (std::same_as<Scalar, float>) return;
  std::array<Scalar, row_elements<std::int8_t>(largest_head_dim)> kept;
  store_row(row, head_dim, kept.data());
  load_row(kept.data(), head_dim, row);
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
