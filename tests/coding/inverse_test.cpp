// Inverses in place are those of Eigen, whatever order the pivots come in.

#include "squat/coding/inverse.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "reference/inputs.hpp"

namespace squat::test::inverse_test {
namespace {

TEST(Inverse, TimesTheMatrixIsTheIdentity) {
  for (Index size : {1, 2, 16, 48, 129}) {
    RowMatrix matrix = Normal(static_cast<std::uint32_t>(size)).matrix(size, size).cast<float>();
    matrix += 8 * RowMatrix::Identity(size, size).rowwise().reverse();
    RowMatrix inverse = matrix;
    std::vector<Index> pivots(static_cast<std::size_t>(size));
    invert(inverse.data(), size, pivots.data());
    EXPECT_LT((matrix * inverse - RowMatrix::Identity(size, size)).cwiseAbs().maxCoeff(), 1e-4f) << size;
  }
}

TEST(Inverse, OfAPermutationIsItsTranspose) {
  constexpr Index size = 7;
  RowMatrix matrix = RowMatrix::Zero(size, size);
  for (Index i = 0; i < size; ++i) matrix(i, (3 * i + 2) % size) = 2;
  RowMatrix inverse = matrix;
  std::vector<Index> pivots(size);
  invert(inverse.data(), size, pivots.data());
  EXPECT_EQ(inverse, RowMatrix(matrix.transpose() / 4));
}

}  // namespace
}  // namespace squat::test::inverse_test
