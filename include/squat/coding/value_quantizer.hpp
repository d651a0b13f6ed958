#pragma once

// Both value codings: how the values of one token and KV head become codes.

#include <Eigen/Core>
#include <cstdint>

#include "squat/coding/affine.hpp"
#include "squat/coding/coding.hpp"
#include "squat/coding/hadamard.hpp"
#include "squat/coding/symmetric.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Channels of a group of plain values: 32, or 16 where head_dim is no multiple
/// of 32.
constexpr Index value_group(Index head_dim) { return head_dim % 32 == 0 ? 32 : 16; }

/// Scales a token and KV head store: one for symmetric values, one a group of
/// channels for plain ones.
constexpr Index value_scales(ValueCoding coding, Index head_dim) {
  return coding == ValueCoding::symmetric ? 1 : head_dim / value_group(head_dim);
}

/// Codes one value row [head_dim], which is overwritten, by groups of channels. codes [head_dim];
/// scales [value_scales].
template <class Scalar>
void quantize_plain_value(Scalar *row, Index head_dim, int bits, AffineFit fit, std::uint8_t *codes,
                          AffineScale *scales) {
  const Index group = value_group(head_dim);
  for (Index first = 0; first < head_dim; first += group) {
    Scalar *x = row + first;
    scales[first / group] = quantize_affine(x, group, bits, fit, codes + first, x);
  }
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
