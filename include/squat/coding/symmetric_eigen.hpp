#pragma once

// Eigenvalues and eigenvectors of a symmetric matrix: Eigen's tridiagonal form and QR iterations.
//
// Eigen's own SelfAdjointEigenSolver::compute makes the orthogonal factor of the tridiagonal form with
// blocked reflections, whose matrix products cost every user four seconds of compile time. Here the
// eigenvectors of the tridiagonal matrix are reflected back one reflection after the other, which takes
// as long at run time at the sizes of a head.

#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <optional>

#include "squat/coding/matrix_product.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

template <class Real>
struct SymmetricEigen {
  Eigen::Matrix<Real, Eigen::Dynamic, 1> values;  ///< rising
  Matrix<Real> vectors;                           ///< a column each, in that order
};

/// The eigenvalues and eigenvectors of A, of which the lower triangle is read. Nothing, where the
/// iteration does not converge, as with numbers that are not finite.
template <class Real = double>
std::optional<SymmetricEigen<Real>> symmetric_eigen(const Matrix<Real> &A) {
  const Index n = A.rows();
  const Eigen::Tridiagonalization<Matrix<Real>> form(A);
  Eigen::SelfAdjointEigenSolver<Matrix<Real>> solver(n);
  solver.computeFromTridiagonal(form.diagonal(), form.subDiagonal());
  if (solver.info() != Eigen::Success) return {};
  // Rows of the vectors as columns, so that a reflection 1 - h v v^T adds columns to columns. v_k is 1
  // in row k + 1 and stands in the packed form below that.
  Matrix<Real> rows = transposed<Real>(solver.eigenvectors());
  const Matrix<Real> &packed = form.packedMatrix();
  Eigen::Matrix<Real, Eigen::Dynamic, 1> along(n);
  for (Index k = n - 2; k >= 0; --k) {
    along = rows.col(k + 1);
    for (Index i = k + 2; i < n; ++i) along += packed(i, k) * rows.col(i);
    along *= form.householderCoefficients()(k);
    rows.col(k + 1) -= along;
    for (Index i = k + 2; i < n; ++i) rows.col(i) -= packed(i, k) * along;
  }
  return SymmetricEigen<Real>{solver.eigenvalues(), transposed<Real>(rows)};
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
