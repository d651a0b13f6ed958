#pragma once

// The orthonormal Hadamard rotation of a head: spreads a row's energy evenly
// over its channels.

#include <Eigen/Core>
#include <bit>
#include <cmath>

#include "squat/coding/chunks.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// The largest power of two that divides head_dim: the rotation works on blocks
/// of so many channels.
constexpr Index hadamard_block(Index head_dim) { return head_dim & -head_dim; }

}  // namespace squat::inline SQUAT_CPU_NAMESPACE

namespace squat::detail::inline SQUAT_CPU_NAMESPACE {

/// The matrix of 16 channels: H_16(i, j) = (-1)^(bits that i and j share).
inline const Eigen::Matrix<float, chunk_size, chunk_size> &hadamard_16() {
  static const auto matrix = [] {
    Eigen::Matrix<float, chunk_size, chunk_size> h;
    for (int i = 0; i < chunk_size; ++i) {
      for (int j = 0; j < chunk_size; ++j) {
        h(i, j) = std::popcount(static_cast<unsigned>(i & j)) % 2 == 0 ? 1.0f : -1.0f;
      }
    }
    return h;
  }();
  return matrix;
}

}  // namespace squat::detail::inline SQUAT_CPU_NAMESPACE

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Rotates a row [head_dim] in place by the normalised Sylvester-Hadamard
/// matrix, block by block. The matrix is symmetric and orthonormal, so the
/// rotation is its own inverse. It is H_16 of every 16 channels, then
/// butterflies between them.
template <class Scalar>
void rotate_hadamard(Scalar *row, Index head_dim) {
  const Index block = hadamard_block(head_dim);
  const Eigen::Matrix<float, chunk_size, chunk_size> h =
      detail::hadamard_16() / std::sqrt(static_cast<float>(block));
  for_each_chunk(head_dim, [&](Index first) {
    Chunk sum = Chunk::Zero();
    for (Index i = 0; i < chunk_size; ++i) sum += row[first + i] * h.col(i).array();
    Eigen::Map<Chunk>(row + first) = sum;
  });
  for (Scalar *x = row; x < row + head_dim; x += block) {
    for (Index half_span = chunk_size; half_span < block; half_span *= 2) {
      for (Index first = 0; first < block; first += 2 * half_span) {
        for_each_chunk(half_span, [&](Index i) {
          Eigen::Map<Chunk> low(x + first + i), high(x + first + half_span + i);
          const Chunk a = low, b = high;
          low = a + b;
          high = a - b;
        });
      }
    }
  }
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
