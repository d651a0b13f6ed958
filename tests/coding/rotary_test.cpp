// A turn is the rotary embedding of its position, and a tile frame's mean scores what the turned mean
// would.

#include "squat/coding/rotary.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "reference/inputs.hpp"
#include "squat/coding/mean_modes.hpp"

namespace squat::test::rotary_test {
namespace {

constexpr Index d = 48;

std::vector<float> row(unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(d);
  for (float &element : x) element = normal(random);
  return x;
}

float dot(const std::vector<float> &a, const std::vector<float> &b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0f);
}

std::vector<float> turned(std::vector<float> x, const RotaryTable &rotary, Index position) {
  Turn(rotary, position).apply(x.data());
  return x;
}

class Rotary : public testing::TestWithParam<RotaryPairs> {};
INSTANTIATE_TEST_SUITE_P(BothPairings, Rotary,
                         testing::Values(RotaryPairs::interleaved, RotaryPairs::halves));

TEST_P(Rotary, TurnsEachPairCounterclockwiseByPositionTimesFrequency) {
  const RotaryTable rotary = rotary_table(1e4, 32, GetParam());
  const std::vector<float> x = row(1);
  for (Index position : {-5, 1, 777, 1000003}) {
    const std::vector<float> y = turned(x, rotary, position);
    for (Index pair = 0; pair < 16; ++pair) {
      const bool halves = GetParam() == RotaryPairs::halves;
      const auto a = static_cast<std::size_t>(halves ? pair : 2 * pair);
      const auto b = static_cast<std::size_t>(halves ? pair + 16 : 2 * pair + 1);
      const double angle =
          static_cast<double>(position) *
          static_cast<double>(rotary.inverse_frequencies[static_cast<std::size_t>(pair)]);
      EXPECT_NEAR(
          y[a],
          static_cast<double>(x[a]) * std::cos(angle) - static_cast<double>(x[b]) * std::sin(angle),
          2e-6);
      EXPECT_NEAR(
          y[b],
          static_cast<double>(x[a]) * std::sin(angle) + static_cast<double>(x[b]) * std::cos(angle),
          2e-6);
    }
    for (std::size_t i = 32; i < d; ++i) EXPECT_EQ(y[i], x[i]) << "behind the last pair nothing turns";
  }
}

TEST_P(Rotary, ScoresDependOnTheDistanceAlone) {
  const RotaryTable rotary = rotary_table(1e4, d, GetParam());
  const std::vector<float> q = row(1), k = row(2);
  const float score = dot(turned(q, rotary, 40), turned(k, rotary, 11));
  EXPECT_NEAR(dot(turned(q, rotary, 5040), turned(k, rotary, 5011)), score, 1e-4);
  EXPECT_NEAR(dot(turned(q, rotary, 29), k), score, 1e-4);
  EXPECT_NEAR(dot(q, turned(k, rotary, -29)), score, 1e-4);
}

TEST_P(Rotary, ATilesMeanScoresAsTheMeanTurnedToEachRow) {
  const TileFrame frame(rotary_table(1e4, 32, GetParam()), 64);
  const MeanModes modes(frame);
  const Eigen::MatrixXd mode_rows = modes.rows(frame);
  EXPECT_LT(modes.count(), 26) << "most angles hardly bend within a tile";
  const std::vector<float> q = row(1), mean = row(2);
  const Eigen::VectorXd weights =
      modes.projection({mean.data(), d}) * Eigen::Map<const Eigen::VectorXf>(q.data(), d).cast<double>();
  for (Index j = 0; j < 64; ++j) {
    EXPECT_NEAR(weights.dot(mode_rows.col(j)), dot(q, turned(mean, frame.table(), j)), 2e-3);
  }
}

TEST_P(Rotary, AMeansProjectionIsThatOfItsProducts) {
  for (const auto pairs : {static_cast<std::size_t>(d / 4),
                           static_cast<std::size_t>(d / 2)}) {  // some channels do not turn, or all do
    RotaryTable table = rotary_table(1e4, d, GetParam());
    table.inverse_frequencies.resize(pairs);
    const MeanModes modes(TileFrame(table, 64));
    const std::vector<float> q = row(1), mean = row(2);
    std::vector<float> products(d, 1.0f);
    multiply_by_mean(table, q.data(), mean.data(), d, products.data());
    const auto column = [](const std::vector<float> &x) {
      return Eigen::Map<const Eigen::VectorXf>(x.data(), static_cast<Index>(x.size())).cast<double>();
    };
    EXPECT_LT((modes.of_products(d) * column(products) - modes.projection(mean) * column(q)).norm(),
              1e-5);
  }
}

TEST_P(Rotary, ATilesMeanIsAddedToChannelsRowByRow) {
  const TileFrame frame(rotary_table(1e4, 32, GetParam()), 64);
  const std::vector<float> mean = row(2);
  std::vector<float> channels(static_cast<std::size_t>(d * 16), 1.0f);
  frame.add_mean(mean.data(), d, -2, 8, 16, channels.data());
  for (Index token = 0; token < 16; ++token) {
    const std::vector<float> expected = turned(mean, frame.table(), 8 + token);
    for (Index i = 0; i < d; ++i) {
      EXPECT_NEAR(channels[static_cast<std::size_t>(i * 16 + token)],
                  1 - 2 * expected[static_cast<std::size_t>(i)], 1e-5);
    }
  }
}

}  // namespace
}  // namespace squat::test::rotary_test
