// The product with a weight matrix, at shapes that fill no panel, tile or block of rows.

#include "linear.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <random>
#include <span>
#include <vector>

namespace engine::test::linear_test {
namespace {

struct Case {
  Linear linear;
  RowMatrix weights;  // as the linear keeps them
};

Case random_case(Eigen::Index outputs, Eigen::Index inputs) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const RowMatrix weights =
      RowMatrix::NullaryExpr(outputs, inputs, [&] { return normal(random); }).eval();
  const auto bytes = std::as_bytes(std::span(weights.data(), static_cast<std::size_t>(weights.size())));
  const Tensor tensor{
      TensorType::f32, {static_cast<std::uint64_t>(inputs), static_cast<std::uint64_t>(outputs)}, bytes};
  return {Linear(tensor, outputs, inputs), weights.cast<Eigen::half>().cast<float>()};
}

TEST(Linear, MultipliesRowsOfEveryNumber) {
  for (Eigen::Index outputs : {1, 16, 47, 48, 49, 261}) {
    for (Eigen::Index inputs : {1, 32, 77}) {
      const Case a = random_case(outputs, inputs);
      for (Eigen::Index rows : {0, 1, 2, 3, 4, 5, 7, 9, 64, 65, 131}) {
        const RowMatrix x = RowMatrix::Random(rows, inputs);
        RowMatrix y;
        a.linear.apply(x, y);
        const RowMatrix expected = x * a.weights.transpose();
        ASSERT_EQ(y.rows(), rows);
        ASSERT_EQ(y.cols(), outputs);
        EXPECT_LE((y - expected).norm(), 1e-5f * expected.norm())
            << outputs << ' ' << inputs << ' ' << rows;
      }
    }
  }
}

TEST(Linear, GivesARowTheSameInEveryBatch) {
  const Case a = random_case(100, 60);
  const RowMatrix x = RowMatrix::Random(70, 60);
  RowMatrix all, one;
  a.linear.apply(x, all);
  for (Eigen::Index row = 0; row < x.rows(); ++row) {
    a.linear.apply(x.row(row), one);
    EXPECT_EQ(one.row(0), all.row(row)) << row;
  }
}

TEST(Linear, HandsItsRowsOut) {
  const Case a = random_case(261, 77);
  RowMatrix row(1, 77);
  for (Eigen::Index output : {0, 47, 48, 260}) {
    a.linear.copy_row(output, row.data());
    EXPECT_EQ(row.row(0), a.weights.row(output)) << output;
  }
}

}  // namespace
}  // namespace engine::test::linear_test
