// The statistics of a head hold the mean and covariance of its keys and the moment of its queries, in
// little memory and whatever the keys' mean is.

#include "squat/coding/query_statistics.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "reference/inputs.hpp"
#include "reference/rotary_table.hpp"
#include "squat/coding/moments.hpp"

namespace squat::test::query_statistics_test {
namespace {

constexpr Index d = 16;

/// Of frequencies that are halved twice from one to the next.
RotaryTable rotary() { return rotary_table(65536, d); }

/// Keys [tokens, d] in the frame of their tiles, the first of them in row `first`, made of keys before
/// their rotary embedding.
RowMatrix turned(RowMatrix keys, Index rows, Index first) {
  const RotaryTable table = rotary();
  for (Index t = 0; t < keys.rows(); ++t) Turn(table, (t + first) % rows).apply(keys.row(t).data());
  return keys;
}

TEST(QueryStatistics, HoldTheCovarianceAboutTheTurnedMean) {
  constexpr Index rows = 32, tokens = 100;
  const TileFrame frame(rotary(), rows);
  const RowMatrix before = (Normal(1).matrix(tokens, d).array() + 3).matrix().cast<float>();
  const RowMatrix keys = turned(before, rows, 5);
  QueryStatistics whole(d, 16, rows), front(d, 16, rows), back(d, 16, rows);
  add_keys(whole, {keys.data(), tokens, d}, 5);
  add_keys(front, {keys.data(), 41, d}, 5);
  add_keys(back, {keys.row(41).data(), tokens - 41, d}, 5 + 41);
  front.merge(back);

  const Eigen::RowVectorXf mean = before.colwise().mean();
  const RowMatrix off = keys - turned(mean.replicate(tokens, 1), rows, 5);
  const RowMatrix centred = off.rowwise() - off.colwise().mean();
  const Eigen::MatrixXd expected = (centred.transpose() * centred).cast<double>() / tokens;
  for (const QueryStatistics *statistics : {&whole, &front}) {
    const std::vector<double> found = KeySums(*statistics, &frame).mean;
    EXPECT_LT(
        (Eigen::Map<const Eigen::VectorXd>(found.data(), d) - mean.transpose().cast<double>()).norm(),
        1e-5);
    EXPECT_LT((key_covariance(*statistics, &frame, {*statistics, &frame}) - expected).norm(),
              1e-4 * expected.norm());
  }
}

/// What is added to the mean is known, so that the covariance expected has no large numbers in it. With
/// one row, keys do not turn.
TEST(QueryStatistics, HoldTheCovarianceBesideAMeanThreeHundredTimesTheDeviation) {
  constexpr Index tokens = 8192;
  const RowMatrix noise = Normal(2).matrix(tokens, d).cast<float>();
  for (Index rows : {1, 256}) {
    const TileFrame frame(rotary(), rows);
    const RowMatrix mean = turned(RowMatrix::Constant(tokens, d, 300), rows, 0);
    const RowMatrix keys = mean + turned(noise, rows, 0);
    QueryStatistics statistics(d, 16, rows);
    for (Index t = 0; t < tokens; t += 64) add_keys(statistics, {keys.row(t).data(), 64, d}, t % rows);

    Eigen::MatrixXd centred = (keys - mean).cast<double>();
    const RowMatrix pre_rotary = noise.colwise().mean().replicate(tokens, 1);
    centred -= turned(pre_rotary, rows, 0).cast<double>();
    centred.rowwise() -= Eigen::RowVectorXd(centred.colwise().mean());
    const Eigen::MatrixXd expected = centred.transpose() * centred / tokens;
    const TileFrame *turning = rows > 1 ? &frame : nullptr;
    const Eigen::MatrixXd found = key_covariance(statistics, turning, {statistics, turning});
    EXPECT_LT((found - expected).cwiseAbs().maxCoeff(), 4e-3) << rows << " rows";
  }
}

TEST(QueryStatistics, HoldTheMomentOfQueriesThatComeOneByOne) {
  constexpr Index queries = 20000;
  const RowMatrix q = Normal(3).matrix(queries, d).cast<float>();
  QueryStatistics statistics(d, 16, 1);
  for (Index i = 0; i < queries; ++i) add_queries(statistics, {q.row(i).data(), 1, d});
  const Eigen::MatrixXd x = q.cast<double>(), expected = x.transpose() * x;
  EXPECT_EQ(statistics.queries(), queries);
  EXPECT_LT((query_moment(statistics) - expected).norm(), 1e-5 * expected.norm());
}

/// Three squares of moments and the sums of 256 rows, all of doubles, are what statistics would take
/// that know nothing of symmetry.
TEST(QueryStatistics, TakeHalfOfWhatSquaresAndRowsOfDoublesWould) {
  for (Index channels : {64, 128}) {
    constexpr Index rows = 256;
    const Index full = (3 * channels * channels + rows * channels) * 8;
    EXPECT_LE(QueryStatistics(channels, 128, rows).bytes(), static_cast<std::size_t>(full / 2));
  }
}

}  // namespace
}  // namespace squat::test::query_statistics_test
