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
#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "squat/coding/bit_allocation.hpp"
#include "squat/coding/matrix_product.hpp"
#include "squat/coding/rounded_matrix.hpp"
#include "squat/coding/symmetric_eigen.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// What subspace coding needs to know of one KV head.
struct SubspaceBasis {
  RowMatrix to_basis;            ///< A, [coordinate, channel]
  std::vector<float> metric;     ///< C's diagonal, [channel]: how much an error there weighs
  std::vector<double> variance;  ///< of each coordinate, falling
  double weight = 1;             ///< what the metric was divided by, C's mean diagonal
  BitAllocation allocation;      ///< of the coordinates
  RoundedMatrix rounded;         ///< A^-T once a backend has rounded it; A is then its inverse transpose

  /// A^-T, [coordinate, channel], by which queries go; keys go back by its transpose. It is worked
  /// out each time: who needs it often keeps it in a form of their own. A's condition is at most
  /// sqrt(10 d + 1), so that A A^T may be inverted instead.
  template <class Real = double>
  Matrix<Real> queries_to_basis() const {
    if (!rounded.empty()) {
      Matrix<Real> entries(rounded.outputs, rounded.inputs);
      for (Index i = 0; i < rounded.outputs; ++i) {
        for (Index j = 0; j < rounded.inputs; ++j)
          entries(i, j) = static_cast<Real>(rounded.entry(i, j));
      }
      return entries;
    }
    Matrix<Real> result = to_basis.template cast<Real>();
    const Eigen::LLT<Matrix<Real>> squares(matrix_product<Real>(result, transposed<Real>(result)));
    squares.solveInPlace(result);
    return result;
  }

  /// A^-1, [channel, coordinate].
  template <class Real = double>
  RowMatrix from_basis() const {
    return queries_to_basis<Real>().template cast<float>().transpose();
  }

  std::size_t bytes() const {
    return static_cast<std::size_t>(to_basis.size()) * sizeof(float) + metric.size() * sizeof(float) +
           variance.size() * sizeof(double) + rounded.size_bytes() + sizeof(*this);
  }
};

/// The basis for the queries' moments C = sum q q^T and the keys' covariance S,
/// both [head_dim, head_dim], and keys of `bits` bits on average. C is brought
/// to a mean diagonal of 1 and 0.1 I is added: directions the prompt's queries
/// did not show keep some weight. Without queries, where C is 0, it is the
/// identity: keys alone give their principal axes. Nothing, where the statistics
/// say nothing: no variance, or numbers that leave the range of float.
template <class Real = double>
std::optional<SubspaceBasis> learn_subspace_basis(const Matrix<Real> &C, const Matrix<Real> &S,
                                                  int bits) {
  constexpr Real ridge = Real{1} / 10;
  const Index d = C.rows();
  const auto finite = [](const auto &matrix) {
    return std::all_of(matrix.data(), matrix.data() + matrix.size(),
                       [](auto entry) { return std::isfinite(entry); });
  };
  const auto mean_diagonal = [d](const Matrix<Real> &matrix) {
    Real sum = 0;
    for (Index i = 0; i < d; ++i) sum += matrix(i, i);
    return sum / static_cast<Real>(d);
  };
  // The scale of the keys is taken out: it may lie anywhere in float16's range.
  const Real sum_of_queries = mean_diagonal(C), scale = mean_diagonal(S);
  if (!(sum_of_queries >= 0) || !(scale > 0) || !finite(C) || !finite(S)) return {};
  const bool keys_alone = sum_of_queries == 0;
  const Real mean = keys_alone ? Real{1} : sum_of_queries;
  Matrix<Real> metric(d, d), scaled(d, d);
  for (Index i = 0; i < d * d; ++i) {
    metric.data()[i] = C.data()[i] / mean;
    scaled.data()[i] = S.data()[i] / scale;
  }
  for (Index i = 0; i < d; ++i) metric(i, i) += keys_alone ? Real{1} : ridge;
  const Eigen::LLT<Matrix<Real>> cholesky(metric);
  if (cholesky.info() != Eigen::Success) return {};
  Matrix<Real> U = cholesky.matrixLLT();
  for (Index j = 1; j < d; ++j) std::fill_n(U.data() + j * d, j, Real{0});
  const Matrix<Real> transposed_U = transposed<Real>(U);
  const auto eigen =
      symmetric_eigen<Real>(matrix_product<Real>(matrix_product<Real>(transposed_U, scaled), U));
  if (!eigen) return {};
  const Matrix<Real> A = matrix_product<Real>(transposed<Real>(eigen->vectors), transposed_U);
  SubspaceBasis basis;
  basis.weight = static_cast<double>(mean);
  // A's singular values are U's, from sqrt(ridge) to sqrt(d + ridge): float holds A^-1 too.
  basis.to_basis.resize(d, d);
  for (Index i = 0; i < d; ++i) {  // the solver's values rise
    for (Index j = 0; j < d; ++j) basis.to_basis(i, j) = static_cast<float>(A(d - 1 - i, j));
    basis.metric.push_back(static_cast<float>(metric(i, i)));
    basis.variance.push_back(static_cast<double>(scale * std::max(eigen->values(d - 1 - i), Real{0})));
  }
  basis.allocation = allocate_bits(basis.variance, bits);
  const bool known = std::all_of(basis.variance.begin(), basis.variance.end(),
                                 [](double x) { return std::isfinite(x); });
  if (!known || !finite(basis.to_basis)) return {};
  return basis;
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
