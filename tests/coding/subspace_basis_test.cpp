// The subspace basis keeps every score, makes errors and keys uncorrelated, and survives statistics that
// say little.

#include "squat/coding/subspace_basis.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "reference/inputs.hpp"

namespace squat::test::subspace_basis_test {
namespace {

Eigen::MatrixXd moment(Index d, std::uint32_t seed, Index rank) {
  const Matrix x = Normal(seed).matrix(rank, d);
  return x.transpose() * x;
}

TEST(SubspaceBasis, KeepsScores) {
  const auto basis = learn_subspace_basis(moment(64, 1, 200), moment(64, 2, 300), 2);
  ASSERT_TRUE(basis);
  const RowMatrix identity = basis->to_basis * basis->from_basis();
  EXPECT_LT((identity - RowMatrix::Identity(64, 64)).cwiseAbs().maxCoeff(), 1e-4f);
}

TEST(SubspaceBasis, MakesTheMetricTheIdentityAndTheKeysUncorrelatedOfFallingVariance) {
  const Eigen::MatrixXd C = moment(32, 1, 100), S = moment(32, 2, 100);
  const auto basis = learn_subspace_basis(C, S, 2);
  ASSERT_TRUE(basis);
  const Eigen::MatrixXd A = basis->to_basis.cast<double>(), inverse = basis->from_basis().cast<double>();
  const Eigen::MatrixXd metric = C / (C.trace() / 32) + .1 * Eigen::MatrixXd::Identity(32, 32);
  EXPECT_LT((inverse.transpose() * metric * inverse - Eigen::MatrixXd::Identity(32, 32)).norm(), 1e-4);
  Eigen::MatrixXd covariance = A * S * A.transpose();
  covariance.diagonal() -= Eigen::Map<const Eigen::VectorXd>(basis->variance.data(), 32);
  EXPECT_LT(covariance.norm(), 1e-4 * basis->variance[0]);
  EXPECT_TRUE(std::is_sorted(basis->variance.rbegin(), basis->variance.rend()));
}

TEST(SubspaceBasis, SurvivesStatisticsThatSayLittle) {
  const Eigen::MatrixXd nothing = Eigen::MatrixXd::Zero(64, 64), some = moment(64, 3, 200);
  EXPECT_FALSE(learn_subspace_basis(some, nothing, 2)) << "constant keys";
  for (Index rank : {1, 2, 63}) {
    EXPECT_TRUE(learn_subspace_basis(moment(64, 4, rank), some, 2));
    const auto basis = learn_subspace_basis(some, moment(64, 5, rank), 2);
    ASSERT_TRUE(basis);
    EXPECT_GE(basis->variance.back(), 0);
  }
  EXPECT_TRUE(learn_subspace_basis<double>(1e-30 * some, 1e12 * some, 2));
}

TEST(BitAllocation, FallsWithTheVarianceAndSpendsItsBudget) {
  for (Index d : {16, 32, 48, 64, 80, 96, 128, 144, 192, 256, 512}) {
    std::vector<double> fall;
    for (Index i = 0; i < d; ++i)
      fall.push_back(std::exp(-8.0 * static_cast<double>(i) / static_cast<double>(d - 1)));
    for (int bits : {2, 3, 4, 8}) {
      Index spent = 0, end = 0;
      int width = 9;
      const BitAllocation allocation = allocate_bits(fall, bits);
      for (const CodeRun &run : allocation.runs()) {
        EXPECT_LT(run.bits, width);
        EXPECT_EQ(run.first, end);
        width = run.bits;
        end += run.channels;
        spent += run.bits * run.channels;
      }
      EXPECT_EQ(spent, allocation_budget(bits, d) * allocation_unit(d))
          << d << " channels, " << bits << " bits";
      EXPECT_LE(allocation.bytes(128), code_bytes(bits, 128, d)) << "a page has one size";
    }
  }
}

TEST(BitAllocation, GivesAFlatSpectrumTheSameWidthThroughout) {
  const BitAllocation allocation = allocate_bits(std::vector<double>(128, 1.0), 2);
  ASSERT_EQ(allocation.runs().size(), 1u);
  EXPECT_EQ(allocation.runs()[0].bits, 2);
  EXPECT_EQ(allocation.coded_channels(), 128);
}

/// Without queries all directions matter alike: the basis is that of the keys' covariance.
TEST(SubspaceBasis, OfKeysAloneIsTheirPrincipalAxes) {
  constexpr Index d = 32;
  const Eigen::MatrixXd S = moment(d, 2, 100);
  const auto basis = learn_subspace_basis<double>(Eigen::MatrixXd::Zero(d, d), S, 2);
  ASSERT_TRUE(basis);
  const Eigen::MatrixXd A = basis->to_basis.cast<double>();
  EXPECT_LT((A * A.transpose() - Eigen::MatrixXd::Identity(d, d)).norm(), 1e-5);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(S);  // values rise
  for (Index i = 0; i < d; ++i) {
    EXPECT_NEAR(basis->variance[static_cast<std::size_t>(i)], eigen.eigenvalues()(d - 1 - i),
                1e-9 * eigen.eigenvalues()(d - 1));
  }
}

}  // namespace
}  // namespace squat::test::subspace_basis_test
