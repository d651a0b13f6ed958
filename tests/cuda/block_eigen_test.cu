// A block finds eigenvalues and eigenvectors of any symmetric matrix to a millionth of the largest: also
// where they are repeated, missing or far apart, which statistics of few tokens give.

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <Eigen/Core>
#include <Eigen/QR>
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "device_array.hpp"
#include "squat/core/config.hpp"
#include "squat/cuda/coding/block_eigen.cuh"
#include "squat/cuda/coding/block_matrix.cuh"
#include "squat/cuda/coding/column_quarter.cuh"
#include "squat/cuda/kernels/launch_behind.cuh"

namespace squat::test {
namespace {

/// matrices, vectors, scratch: [blocks, d, d]; values: [blocks, d].
template <int d>
__global__ void __launch_bounds__(4 * d)
    diagonalize_all(const float *matrices, float *vectors, double *values, float *scratch) {
  extern __shared__ __align__(16) float memory[];
  __shared__ cuda::EigenMemory<d> eigen;
  const cuda::BlockMatrix<d> p{memory}, q{memory + p.floats};
  const int first = static_cast<int>(blockIdx.x) * d * d;
  cuda::ColumnQuarter<d> columns;
  columns.fill([&](int i, int j) { return matrices[first + i * d + j]; });
  cuda::diagonalize(columns, p, q, scratch + first, eigen);
  for (int n = 0; n < columns.quads; ++n) {
    for (int i = 0; i < 4; ++i)
      vectors[first + (columns.row(n) + i) * d + columns.column()] = cuda::element(columns.x[n], i);
  }
  if (columns.part() == 0)
    values[static_cast<int>(blockIdx.x) * d + columns.column()] = eigen.merge.value[columns.column()];
}

struct Diagonal {
  std::vector<float> vectors;
  std::vector<double> values;
};

template <int d>
Diagonal diagonalized(const std::vector<float> &matrices) {
  constexpr int bytes = 2 * cuda::BlockMatrix<d>::floats * static_cast<int>(sizeof(float));
  const auto blocks = matrices.size() / (d * d);
  const DeviceArray<float> from(matrices), vectors(matrices.size()), scratch(matrices.size());
  const DeviceArray<double> values(blocks * d);
  cuda::allow_shared_bytes<diagonalize_all<d>>(bytes);
  diagonalize_all<d><<<static_cast<unsigned>(blocks), 4 * d, bytes>>>(from.data(), vectors.data(),
                                                                      values.data(), scratch.data());
  finish();
  return {vectors.read(), values.read()};
}

using Matrix = Eigen::MatrixXd;
using Named = std::vector<std::pair<std::string, Matrix>>;

Named nasty_matrices(Index d) {
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  const auto gaussian = [&](Index rows) {
    return Matrix(Matrix::NullaryExpr(rows, d, [&] { return normal(random); }));
  };
  const auto gram = [](const Matrix &x) { return Matrix(x.transpose() * x); };
  const auto diagonal = [&](auto &&value) {
    Matrix matrix = Matrix::Zero(d, d);
    for (Index i = 0; i < d; ++i) matrix(i, i) = value(i);
    return matrix;
  };
  const Matrix rotation = Eigen::HouseholderQR<Matrix>(gaussian(d)).householderQ();
  const auto with_values = [&](auto &&value) {
    return Matrix(rotation * diagonal(value) * rotation.transpose());
  };
  const auto tridiagonal = [&](auto &&value, double beside) {
    Matrix matrix = diagonal(value);
    for (Index i = 0; i + 1 < d; ++i) matrix(i, i + 1) = matrix(i + 1, i) = beside;
    return matrix;
  };
  const Matrix block = gram(gaussian(60)).topLeftCorner(d / 2, d / 2);
  Matrix twice = Matrix::Zero(d, d);
  twice.topLeftCorner(d / 2, d / 2) = twice.bottomRightCorner(d / 2, d / 2) = block;
  const auto range = static_cast<double>(d - 1);
  return {
      {"covariance", gram(gaussian(700)) / 700},
      {"power law", with_values([&](Index i) { return std::pow(10.0, -8 * i / range); })},
      {"repeated values", with_values([&](Index i) {
         return 2 * i < d ? 1 : 4 * i < 3 * d ? .5 : 1e-3;
       })},
      {"identity", Matrix::Identity(d, d)},
      {"zero", Matrix::Zero(d, d)},
      {"one direction", gram(gaussian(1))},
      {"all ones", Matrix::Ones(d, d)},
      {"ten directions", gram(gaussian(10))},
      {"diagonal", diagonal([](Index i) { return std::pow(10.0, -static_cast<double>(i * 7 % 13)); })},
      {"Wilkinson's", tridiagonal([&](Index i) { return std::abs(static_cast<double>(i - d / 2)); }, 1)},
      {"second differences", tridiagonal([](Index) { return 2.0; }, -1)},
      {"all values twice", twice},
      {"huge range",
       with_values([](Index i) { return i == 0 ? 1e12 : 1e5 * static_cast<double>(i % 3); })},
      {"one cluster", with_values([](Index i) { return 1 + 1e-6 * static_cast<double>(i); })},
      {"tiny", with_values([](Index i) { return 1e-20 * static_cast<double>(1 + i); })},
      {"indefinite", with_values([](Index i) { return static_cast<double>(i % 2 ? -1 - i : 1 + i); })},
  };
}

template <int d>
void expect_eigenvectors() {
  const Named matrices = nasty_matrices(d);
  std::vector<float> all;
  for (const auto &[name, matrix] : matrices) {
    const RowMatrix rows = matrix.cast<float>();
    all.insert(all.end(), rows.data(), rows.data() + rows.size());
  }
  const Diagonal found = diagonalized<d>(all);
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    SCOPED_TRACE(matrices[i].first + " of " + std::to_string(d));
    const Matrix A = Eigen::Map<const RowMatrix>(all.data() + i * d * d, d, d).template cast<double>();
    const Matrix V =
        Eigen::Map<const RowMatrix>(found.vectors.data() + i * d * d, d, d).template cast<double>();
    const Eigen::Map<const Eigen::VectorXd> values(found.values.data() + i * d, d);
    EXPECT_TRUE(std::is_sorted(values.data(), values.data() + d));
    EXPECT_LT((V.transpose() * V - Matrix::Identity(d, d)).cwiseAbs().maxCoeff(), 5e-6);
    const double largest = values.cwiseAbs().maxCoeff();
    EXPECT_LE((A * V - V * values.asDiagonal()).colwise().norm().maxCoeff(), 2.5e-6 * largest);
  }
}

class BlockEigen : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_device()) GTEST_SKIP() << "no CUDA device";
    constexpr int most = 2 * cuda::BlockMatrix<128>::floats * static_cast<int>(sizeof(float));
    if (cuda::device_limits().shared_bytes < most + 8192) GTEST_SKIP() << "no room in shared memory";
  }
};

TEST_F(BlockEigen, OfNastyMatrices) {
  expect_eigenvectors<32>();
  expect_eigenvectors<64>();
  expect_eigenvectors<96>();
  expect_eigenvectors<128>();
}

// And says so: nothing is learnt from statistics that are not finite.
TEST_F(BlockEigen, OfNumbersThatAreNotFiniteEnds) {
  constexpr int d = 64;
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const auto &[row, column] : {std::pair{5, 7}, {0, 0}, {60, 60}, {63, 0}}) {
      std::vector<float> matrix(d * d, 1.0f);
      matrix[static_cast<std::size_t>(row * d + column)] = bad;
      matrix[static_cast<std::size_t>(column * d + row)] = bad;
      const Diagonal found = diagonalized<d>(matrix);
      const auto finite = [](double x) { return std::isfinite(x); };
      EXPECT_FALSE(std::all_of(found.values.begin(), found.values.end(), finite) &&
                   std::all_of(found.vectors.begin(), found.vectors.end(), finite))
          << row << ", " << column;
    }
  }
}

}  // namespace
}  // namespace squat::test
