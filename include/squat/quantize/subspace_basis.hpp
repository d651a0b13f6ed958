#pragma once

// The joint eigenbasis of queries and keys, in which keys are coded.
//
// Attention sees the error e of a key as q . e, so errors are measured in the
// metric C = mean q q^T. With S the covariance of the keys and C = U U^T
// (Cholesky), let U^T S U = W diag(variance) W^T, variance falling. Then
//
//   y = A k,  A = W^T U^T        q' = A^-T q = W^T U^-1 q        q' . y = q . k
//
// and in y the metric is the identity and the coordinates are uncorrelated:
// rounding needs no feedback, and bits go where the variance is. This is the
// generalised symmetric eigenproblem S x = variance C^-1 x.

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <Eigen/LU>
#include <optional>

#include "squat/config.hpp"
#include "squat/instruction_set.hpp"
#include "squat/quantize/bit_allocation.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// What subspace coding needs to know of one KV head.
struct SubspaceBasis {
  RowMatrix to_basis;        ///< A, [coordinate, channel]
  Eigen::ArrayXf metric;     ///< C's diagonal, [channel]: how much an error there weighs
  Eigen::ArrayXd variance;   ///< of each coordinate, falling
  BitAllocation allocation;  ///< of the coordinates

  /// A^-1, [channel, coordinate]; queries go by its transpose. It is worked out each
  /// time: who needs it often keeps it in a form of their own.
  Eigen::MatrixXd from_basis() const { return to_basis.cast<double>().inverse(); }

  std::size_t bytes() const {
    return static_cast<std::size_t>(to_basis.size() + metric.size()) * sizeof(float) +
           static_cast<std::size_t>(variance.size()) * sizeof(double) + sizeof(*this);
  }
};

/// The basis for the queries' moments C = sum q q^T and the keys' covariance S,
/// both [head_dim, head_dim], and keys of `bits` bits on average. C is brought
/// to a mean diagonal of 1 and 0.1 I is added: directions the prompt's queries
/// did not show keep some weight. Nothing, where the statistics say nothing: no
/// query, no variance, or numbers that leave the range of float.
inline std::optional<SubspaceBasis> learn_subspace_basis(const Eigen::MatrixXd &C,
                                                         const Eigen::MatrixXd &S, int bits) {
  constexpr double ridge = .1;
  const Index d = C.rows();
  const double mean = C.trace() / static_cast<double>(d);
  if (!(mean > 0) || !(S.trace() > 0) || !C.allFinite() || !S.allFinite()) return {};
  const Eigen::MatrixXd metric = C / mean + ridge * Eigen::MatrixXd::Identity(d, d);
  const Eigen::LLT<Eigen::MatrixXd> cholesky(metric);
  if (cholesky.info() != Eigen::Success) return {};
  const Eigen::MatrixXd U = cholesky.matrixL();
  const auto lower = U.triangularView<Eigen::Lower>();
  // The scale of the keys is taken out: it may lie anywhere in float16's range.
  const double scale = S.trace() / static_cast<double>(d);
  const Eigen::MatrixXd half = lower.transpose() * (S / scale);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(half * lower);
  if (eigen.info() != Eigen::Success) return {};
  const Eigen::MatrixXd W = eigen.eigenvectors().rowwise().reverse();
  SubspaceBasis basis;
  // A's singular values are U's, from sqrt(ridge) to sqrt(d + ridge): float holds A^-1 too.
  basis.to_basis = (lower * W).transpose().cast<float>();
  basis.metric = metric.diagonal().cast<float>().array();
  basis.variance = scale * eigen.eigenvalues().reverse().array().max(0.0);
  basis.allocation = allocate_bits(basis.variance, bits);
  if (!basis.to_basis.allFinite()) return {};
  return basis;
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
