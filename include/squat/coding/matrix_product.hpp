#pragma once

// Products of matrices of one kind. Each pair of types that Eigen multiplies costs a second of
// compile time, so operands that are views or transposed are copied first.

#include <Eigen/Core>
#include <type_traits>

#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// a b.
template <class Real>
Matrix<Real> matrix_product(const Matrix<Real> &a, const Matrix<Real> &b) {
  Matrix<Real> product(a.rows(), b.cols());
  product.noalias() = a * b;
  return product;
}

/// A row-major matrix in somebody's memory, its rows `stride` elements apart.
template <class Scalar>
using StridedRows = Eigen::Map<
    std::conditional_t<std::is_const_v<Scalar>,
                       const Eigen::Matrix<std::remove_const_t<Scalar>, Eigen::Dynamic, Eigen::Dynamic,
                                           Eigen::RowMajor>,
                       Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>,
    0, Eigen::OuterStride<>>;

/// Rows [rows, columns], one behind the other unless `stride` says otherwise.
template <class Scalar>
StridedRows<Scalar> strided_rows(Scalar *data, Index rows, Index columns, Index stride = 0) {
  return {data, rows, columns, Eigen::OuterStride<>(stride > 0 ? stride : columns)};
}

/// c += a b.
template <class Scalar>
void add_product(StridedRows<const Scalar> a, StridedRows<const Scalar> b, StridedRows<Scalar> c) {
  c.noalias() += a * b;
}

/// c += a b^T.
template <class Scalar>
void add_product_transposed(StridedRows<const Scalar> a, StridedRows<const Scalar> b,
                            StridedRows<Scalar> c) {
  c.noalias() += a * b.transpose();
}

/// The transpose of a matrix, as a matrix of its own.
template <class Real>
Matrix<Real> transposed(const Matrix<Real> &a) {
  return a.transpose();
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
