#pragma once

// The orthonormal Hadamard rotation of a head: spreads a row's energy evenly
// over its channels.
//
//   rotated = H D row,  row = D H rotated
//
// with H the normalised Sylvester-Hadamard matrix, which is its own inverse,
// and D a diagonal of signs. H alone would gather a row of equal numbers in
// its first channel; D is chosen so that H D spreads it as well.

#include <Eigen/Core>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>

#include "squat/coding/chunks.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// The largest power of two that divides head_dim: the rotation works on blocks
/// of so many channels.
constexpr Index hadamard_block(Index head_dim) { return head_dim & -head_dim; }

/// Whether D turns the sign of a channel of a block of that size. Rows of equal numbers become rows of
/// one magnitude where the block has an even number of bits: pairs of a channel's bits make a bent
/// function (Rothaus 1976). An odd number leaves three bits, of which one in eight channels is turned:
/// that makes magnitudes of 1 and 3, as mid-rise codes of 2 bits have them.
constexpr bool turns_sign(unsigned channel, unsigned block) {
  const bool odd = std::countr_zero(block) % 2 != 0;
  const unsigned pairs = odd ? channel >> 3 : channel;
  const bool of_three = odd && (channel & 7) == 7;
  return of_three != (std::popcount(pairs & pairs >> 1 & 0x55u) % 2 != 0);
}

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

namespace squat::detail::inline SQUAT_CPU_NAMESPACE {

/// D of a block.
inline const float *hadamard_signs(Index block) {
  constexpr Index most = 512;
  static constexpr auto signs = [] {
    std::array<std::array<float, most>, 2> of_parity{};
    for (unsigned i = 0; i < most; ++i) {
      of_parity[0][i] = turns_sign(i, 256) ? -1.0f : 1.0f;
      of_parity[1][i] = turns_sign(i, 512) ? -1.0f : 1.0f;
    }
    return of_parity;
  }();
  SQUAT_ASSERT(block <= most);
  return signs[static_cast<std::size_t>(std::countr_zero(static_cast<unsigned>(block)) % 2)].data();
}

/// row = D row, [head_dim].
template <class Scalar>
void turn_signs(Scalar *row, Index head_dim) {
  const Index block = hadamard_block(head_dim);
  const float *signs = hadamard_signs(block);
  for_each_chunk(head_dim, [&](Index first) {
    Eigen::Map<Chunk>(row + first) = load_chunk(row + first) * load_chunk(signs + first % block);
  });
}

/// row = H row, [head_dim]: H_16 of every 16 channels, then butterflies between them.
template <class Scalar>
void multiply_hadamard(Scalar *row, Index head_dim) {
  const Index block = hadamard_block(head_dim);
  const float scale = 1 / std::sqrt(static_cast<float>(block));
  const Eigen::Matrix<float, chunk_size, chunk_size> &h = detail::hadamard_16();
  for_each_chunk(head_dim, [&](Index first) {
    Chunk sum = Chunk::Zero();
    for (Index i = 0; i < chunk_size; ++i) sum += row[first + i] * h.col(i).array();
    Eigen::Map<Chunk>(row + first) = scale * sum;
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

}  // namespace squat::detail::inline SQUAT_CPU_NAMESPACE

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Rotates a row [head_dim] in place, block by block.
template <class Scalar>
void rotate_hadamard(Scalar *row, Index head_dim) {
  detail::turn_signs(row, head_dim);
  detail::multiply_hadamard(row, head_dim);
}

/// The inverse of rotate_hadamard().
template <class Scalar>
void rotate_hadamard_back(Scalar *row, Index head_dim) {
  detail::multiply_hadamard(row, head_dim);
  detail::turn_signs(row, head_dim);
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
