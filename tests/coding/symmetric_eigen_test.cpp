// Eigenvectors by single reflections are those of the matrix, at any size.

#include "squat/coding/symmetric_eigen.hpp"

#include <gtest/gtest.h>

#include <Eigen/Core>
#include <cmath>
#include <limits>
#include <random>

namespace squat::test::symmetric_eigen_test {
namespace {

using squat::Matrix;

template <class Real>
Matrix<Real> random_symmetric(Index n) {
  std::mt19937 random(static_cast<unsigned>(n));
  std::normal_distribution<double> normal;
  Matrix<Real> A(n, n);
  for (Index j = 0; j < n; ++j) {
    for (Index i = 0; i <= j; ++i) A(i, j) = A(j, i) = static_cast<Real>(normal(random));
  }
  return A;
}

template <class Real>
void expect_decomposition(const Matrix<Real> &A, Real tolerance) {
  const Index n = A.rows();
  const auto eigen = symmetric_eigen<Real>(A);
  ASSERT_TRUE(eigen);
  const Matrix<Real> &V = eigen->vectors;
  const Matrix<Real> turned = V.transpose() * A * V;
  const Matrix<Real> diagonal = eigen->values.asDiagonal();
  EXPECT_LE((turned - diagonal).norm(), tolerance * (1 + A.norm())) << n;
  EXPECT_LE((V.transpose() * V - Matrix<Real>::Identity(n, n)).norm(), tolerance * static_cast<Real>(n));
  for (Index i = 1; i < n; ++i) EXPECT_LE(eigen->values(i - 1), eigen->values(i));
}

TEST(SymmetricEigen, DecomposesMatricesOfAnySize) {
  for (const Index n : {1, 2, 3, 17, 64, 130}) {
    expect_decomposition<double>(random_symmetric<double>(n), 1e-13);
    expect_decomposition<float>(random_symmetric<float>(n), 1e-4f);
  }
}

TEST(SymmetricEigen, DecomposesWhatIsDiagonalOrOfSmallRank) {
  expect_decomposition<double>(Matrix<double>::Identity(20, 20), 1e-13);
  expect_decomposition<double>(Matrix<double>::Zero(20, 20), 1e-13);
  const Matrix<double> x = random_symmetric<double>(40).leftCols(3);
  expect_decomposition<double>(x * x.transpose(), 1e-13);
}

TEST(SymmetricEigen, SaysThatNumbersAreNotFinite) {
  Matrix<double> A = random_symmetric<double>(9);
  A(4, 2) = A(2, 4) = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(symmetric_eigen<double>(A));
}

}  // namespace
}  // namespace squat::test::symmetric_eigen_test
