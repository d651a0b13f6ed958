// What a head keeps of its basis: one rounded matrix, of which every other is made.

#include "squat/cpu/head_coding.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "reference/inputs.hpp"
#include "squat/coding/moments.hpp"

namespace squat::cpu::test::head_coding_test {
namespace {

using squat::test::Normal;

/// A quantizer that has learnt from queries of a falling spectrum, or all alike, and keys.
KeyQuantizer learnt_quantizer(Index d, int bits, bool queries_alike) {
  constexpr Index tokens = 300;
  Normal random(5);
  const Eigen::ArrayXd fall = 1 / Eigen::ArrayXd::LinSpaced(d, 1, static_cast<double>(d));
  RowMatrix queries =
      (random.matrix(tokens, d) * fall.matrix().asDiagonal() * random.matrix(d, d)).cast<float>();
  if (queries_alike) queries.rowwise() = queries.row(0).eval();
  const RowMatrix keys = random.matrix(tokens, d).cast<float>();
  QueryStatistics statistics(d, 32, 1);
  add_queries(statistics, {queries.data(), tokens, d});
  add_keys(statistics, {keys.data(), tokens, d}, 0);
  KeyQuantizer quantizer(Coding::subspace, AffineFit::clip_and_gain, {}, bits, d);
  quantizer.learn(statistics, nullptr);
  return quantizer;
}

class Basis : public testing::TestWithParam<Index> {};
INSTANTIATE_TEST_SUITE_P(HeadDims, Basis, testing::Values(16, 48, 64, 128, 256));

TEST_P(Basis, GoesThereAndBackToFloatPrecision) {
  const Index d = GetParam();
  std::vector<Index> pivots(static_cast<std::size_t>(d));
  for (int bits : {2, 3, 8}) {
    for (bool alike : {false, true}) {
      KeyQuantizer quantizer = learnt_quantizer(d, bits, alike);
      ASSERT_TRUE(quantizer.basis());
      quantizer.round_basis();
      const QueryTransform transform(quantizer);
      RowMatrix there(d, d), back(d, d);
      transform.write_to_basis(there.data(), pivots.data());
      transform.write_from_basis(back.data());
      EXPECT_LT((there * back - RowMatrix::Identity(d, d)).cwiseAbs().maxCoeff(), 1e-4f)
          << bits << " bits, queries alike: " << alike;
    }
  }
}

TEST_P(Basis, IsTheLearntOneUpToRounding) {
  const Index d = GetParam();
  for (int bits : {2, 3}) {
    KeyQuantizer quantizer = learnt_quantizer(d, bits, false);
    const RowMatrix exact = quantizer.basis()->from_basis();
    RowMatrix back(d, d);
    quantizer.round_basis();
    QueryTransform(quantizer).write_from_basis(back.data());
    const float error = (back - exact).norm() / exact.norm();
    // Words are steps of 2^-16 of the sum of an output's entries.
    EXPECT_LT(error, bits == 2 ? 2e-2f : 5e-6f * static_cast<float>(d));
    EXPECT_GT(error, 0.0f);
  }
}

TEST_P(Basis, IsHeldOnce) {
  const Index d = GetParam();
  const auto size = static_cast<std::size_t>(d);
  for (int bits : {2, 3}) {
    KeyQuantizer quantizer = learnt_quantizer(d, bits, false);
    quantizer.round_basis();
    const QueryTransform transform(quantizer);
    const BitAllocation before = quantizer.basis()->allocation;
    quantizer.drop_matrix();
    quantizer.drop_rounded();
    quantizer.drop_variance();
    EXPECT_EQ(quantizer.bytes(), sizeof(SubspaceBasis) + size * sizeof(float)) << "the metric";
    EXPECT_EQ(quantizer.basis()->allocation.bytes(32), before.bytes(32));
    // A scale an output; what evens inputs out, where entries are bytes.
    EXPECT_EQ(transform.bytes(), bits == 2 ? size * size + 2 * size * sizeof(float)
                                           : 2 * size * size + size * sizeof(float));
  }
}

}  // namespace
}  // namespace squat::cpu::test::head_coding_test
