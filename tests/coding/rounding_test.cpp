// Affine and symmetric groups, the Hadamard rotation and the feedback of orthogonal rounding.

#include <gtest/gtest.h>

#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <Eigen/LU>
#include <random>
#include <vector>

#include "squat/coding/affine.hpp"
#include "squat/coding/hadamard.hpp"
#include "squat/coding/orthogonal_rounding.hpp"
#include "squat/coding/symmetric.hpp"
#include "squat/coding/value_quantizer.hpp"

namespace squat::test::rounding_test {
namespace {

Eigen::ArrayXf gaussian(Index size, unsigned seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  return Eigen::ArrayXf::NullaryExpr(size, [&] { return normal(random); });
}

Eigen::MatrixXd gaussian_matrix(Index rows, Index columns, unsigned seed) {
  return gaussian(rows * columns, seed).cast<double>().reshaped(rows, columns).matrix();
}

struct Coded {
  AffineScale fit;
  Eigen::ArrayXf rounded;
  std::vector<std::uint8_t> codes;
};

Coded affine(const Eigen::ArrayXf &x, int bits, AffineFit method) {
  Coded coded{{}, x, std::vector<std::uint8_t>(static_cast<std::size_t>(x.size()))};
  coded.fit =
      quantize_affine(x.data(), x.size(), bits, method, coded.codes.data(), coded.rounded.data());
  return coded;
}

TEST(Affine, MinMaxErrorIsHalfAStep) {
  for (int bits : {2, 4, 8}) {
    const Eigen::ArrayXf x = gaussian(128, 1);
    const Coded coded = affine(x, bits, AffineFit::minmax);
    const float step = static_cast<float>(coded.fit.scale);
    EXPECT_LE((coded.rounded - x).abs().maxCoeff(), .5f * step + 4e-3f);
    for (Index i = 0; i < x.size(); ++i) {
      const float code = coded.codes[static_cast<std::size_t>(i)];
      EXPECT_EQ(coded.rounded[i], static_cast<float>(coded.fit.zero) + step * code);
    }
  }
}

TEST(Affine, GainMakesTheErrorOrthogonalToTheGroup) {
  const Eigen::ArrayXf x = gaussian(128, 2);
  const auto slope = [&](AffineFit method) {
    const Eigen::ArrayXf rounded = affine(x, 2, method).rounded, dx = x - x.mean();
    return (dx * (rounded - rounded.mean())).sum() / (dx * dx).sum();
  };
  EXPECT_NEAR(slope(AffineFit::clip_and_gain), 1, 2e-3);
}

TEST(Affine, DegenerateGroupsStayFinite) {
  for (float value : {0.0f, 1e-30f, -3.25f, 65504.0f, -65504.0f}) {
    for (AffineFit method : {AffineFit::minmax, AffineFit::clip_and_gain}) {
      for (int bits : {2, 4, 8}) {
        const Coded coded = affine(Eigen::ArrayXf::Constant(32, value), bits, method);
        EXPECT_TRUE(coded.rounded.isFinite().all());
        EXPECT_LE((coded.rounded - value).abs().maxCoeff(), 1e-3f * std::abs(value) + 1e-6f) << value;
      }
    }
  }
  Eigen::ArrayXf widest = gaussian(32, 3);
  widest[0] = 65504;
  widest[1] = -65504;
  EXPECT_TRUE(affine(widest, 2, AffineFit::clip_and_gain).rounded.isFinite().all());
}

TEST(Symmetric, IsUnbiasedAlongTheRow) {
  for (int bits : {1, 2, 4, 8}) {
    const Eigen::ArrayXf x = gaussian(128, 4);
    std::vector<std::uint8_t> codes(128);
    const auto scale = static_cast<float>(quantize_symmetric(x.data(), 128, bits, codes.data()));
    const Eigen::ArrayXf level =
        Eigen::Map<Eigen::Array<std::uint8_t, 128, 1>>(codes.data()).cast<float>() - middle_code(bits);
    EXPECT_NEAR((x * level).sum() * scale / x.square().sum(), 1, 2e-3);
    // the error of an optimal uniform quantiser of a Gaussian (Max, 1960), before the gain: .3634,
    // .1188, .01154, 1e-4
    const float expected = bits == 1 ? .3634f : bits == 2 ? .1188f : bits == 4 ? .01154f : 1e-4f;
    EXPECT_LT((scale * level - x).square().sum() / x.square().sum(), 1.6f * expected);
  }
}

TEST(Symmetric, ZeroRowsStayZero) {
  const Eigen::ArrayXf x = Eigen::ArrayXf::Zero(64);
  std::vector<std::uint8_t> codes(64);
  EXPECT_EQ(static_cast<float>(quantize_symmetric(x.data(), 64, 2, codes.data())), 0.0f);
}

TEST(Hadamard, GoesBackAndKeepsLength) {
  for (Index d = 16; d <= 512; d += 16) {
    const Eigen::ArrayXf x = gaussian(d, static_cast<unsigned>(d));
    Eigen::ArrayXf y = x;
    rotate_hadamard(y.data(), d);
    EXPECT_NEAR(y.square().sum() / x.square().sum(), 1, 1e-5);
    EXPECT_GT((y - x).abs().maxCoeff(), 1e-2f);
    rotate_hadamard_back(y.data(), d);
    EXPECT_LT((y - x).abs().maxCoeff(), 1e-5f);
  }
}

TEST(Hadamard, SpreadsEqualNumbersEvenly) {
  for (Index d = 16; d <= 512; d += 16) {
    Eigen::ArrayXf x = Eigen::ArrayXf::Ones(d);
    rotate_hadamard(x.data(), d);
    const bool odd = std::countr_zero(static_cast<unsigned>(hadamard_block(d))) % 2 != 0;
    EXPECT_NEAR(x.abs().minCoeff(), odd ? std::sqrt(.5) : 1, 1e-5) << d;
    EXPECT_NEAR(x.abs().maxCoeff(), odd ? 3 * std::sqrt(.5) : 1, 1e-5) << d;
  }
}

TEST(QueryMetric, PublishedFormIsThatOfTheSingularVectors) {
  const Eigen::MatrixXd Q = gaussian_matrix(50, 32, 6);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(Q.transpose() * Q);  // values rise
  const Eigen::MatrixXd leading = eigen.eigenvalues().tail(10).cwiseSqrt().asDiagonal() *
                                  eigen.eigenvectors().rightCols(10).transpose();
  const Eigen::MatrixXd expected =
      Eigen::MatrixXd::Identity(32, 32) + .1 * leading.transpose() * leading;
  const Eigen::MatrixXd P = query_metric<double>(Q.transpose() * Q, {.rank = 10, .lambda = .1f});
  EXPECT_LT((P - expected).norm() / expected.norm(), 1e-6);
}

TEST(QueryMetric, WithoutQueriesIsPlainRounding) {
  EXPECT_EQ(query_metric<double>(Eigen::MatrixXd::Zero(16, 16), {}), Eigen::MatrixXd::Identity(16, 16));
}

/// The paper's recursion (section 4.2): after a block is rounded, the rest takes the minimiser of e^T P
/// e given its errors, -P_rest^-1 P_rest,done e_done.
Eigen::VectorXd minimiser(const Eigen::MatrixXd &P, const Eigen::VectorXd &errors, Index next) {
  const Index rest = P.rows() - next;
  return -P.bottomRightCorner(rest, rest).inverse() * P.bottomLeftCorner(rest, next) * errors.head(next);
}

TEST(OrthogonalRounding, FeedbackIsThePapersMinimiser) {
  for (Index block : {1, 2, 4, 8}) {
    const Eigen::MatrixXd Q = gaussian_matrix(60, 16, 7);
    const Eigen::MatrixXd P = query_metric<double>(Q.transpose() * Q, {});
    const Eigen::MatrixXd F = feedback_matrix(P, block);
    const Eigen::VectorXd errors = gaussian(16, 8).cast<double>().matrix();
    for (Index next = block; next < 16; next += block) {
      const Eigen::VectorXd expected = minimiser(P, errors, next).head(block);
      const Eigen::VectorXd correction = -F.block(next, 0, block, next) * errors.head(next);
      EXPECT_LT((correction - expected).norm(), 1e-9 * expected.norm() + 1e-12)
          << "block " << block << " at " << next;
    }
  }
}

TEST(OrthogonalRounding, LowersTheErrorQueriesSee) {
  const Index d = 64, tokens = 64;
  const Eigen::MatrixXd mix =
      Eigen::ArrayXd::LinSpaced(d, 2, .02).matrix().asDiagonal() * gaussian_matrix(d, d, 9);
  const Eigen::MatrixXd Q = gaussian_matrix(200, d, 10) * mix, C = Q.transpose() * Q;
  const RowMatrix keys = gaussian_matrix(d, tokens, 11).cast<float>();
  const auto seen = [&](const OrthogonalRounding &rounding) {
    RowMatrix errors(d, tokens), by_channel(d, tokens);
    round_orthogonal(rounding, keys.data(), tokens, errors.data(), [&](Index, float *x) {
      std::vector<std::uint8_t> codes(static_cast<std::size_t>(tokens));
      quantize_affine(x, tokens, 2, AffineFit::minmax, codes.data(), x);
    });
    for (Index i = 0; i < d; ++i)
      by_channel.row(rounding.order[static_cast<std::size_t>(i)]) = errors.row(i);
    return (Q * by_channel.cast<double>()).squaredNorm();
  };
  const double plain = seen(
      learn_orthogonal_rounding<double>(Eigen::MatrixXd::Zero(d, d), std::vector<double>(d, 1), {}));
  const double ours = seen(learn_orthogonal_rounding<double>(C, std::vector<double>(d, 1), {}));
  EXPECT_LT(ours, .6 * plain);
}

TEST(OrthogonalRounding, SurvivesDegenerateQueries) {
  Eigen::MatrixXd C = Eigen::MatrixXd::Zero(32, 32);
  C(3, 3) = 1e12;  // one direction dominates
  for (int rank : {0, 1, 32}) {
    const auto rounding = learn_orthogonal_rounding<double>(C, std::vector<double>(32), {.rank = rank});
    EXPECT_TRUE(rounding.feedback.allFinite());
  }
}

}  // namespace
}  // namespace squat::test::rounding_test
