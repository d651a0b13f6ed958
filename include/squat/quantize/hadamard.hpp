#pragma once

// The orthonormal Hadamard rotation of a head: spreads a row's energy evenly
// over its channels.

#include <cmath>

#include "squat/config.hpp"

namespace squat {

/// The largest power of two that divides head_dim: the rotation works on blocks
/// of so many channels.
constexpr Index hadamard_block(Index head_dim) { return head_dim & -head_dim; }

/// Rotates a row [head_dim] in place by the normalised Sylvester-Hadamard
/// matrix, block by block. The matrix is symmetric and orthonormal, so the
/// rotation is its own inverse.
inline void rotate_hadamard(float *row, Index head_dim) {
  const Index block = hadamard_block(head_dim);
  const float norm = 1.0f / std::sqrt(static_cast<float>(block));
  for (float *x = row; x < row + head_dim; x += block) {
    for (Index half_span = 1; half_span < block; half_span *= 2) {
      for (Index first = 0; first < block; first += 2 * half_span) {
        for (Index i = first; i < first + half_span; ++i) {
          const float a = x[i], b = x[i + half_span];
          x[i] = a + b;
          x[i + half_span] = a - b;
        }
      }
    }
    for (Index i = 0; i < block; ++i) x[i] *= norm;
  }
}

}  // namespace squat
