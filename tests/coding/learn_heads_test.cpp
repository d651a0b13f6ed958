// The heads of a layer learn what each would learn alone, whatever threads they learn on, and nothing
// from noise.

#include "squat/coding/learn_heads.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "reference/inputs.hpp"
#include "reference/rotary_table.hpp"

namespace squat::test::learn_heads_test {
namespace {

constexpr Index d = 16, rows = 32, tokens = 256;
constexpr int heads = 3;

/// Of frequencies that are halved twice from one to the next.
RotaryTable rotary() { return rotary_table(65536, d); }

/// What a head knows of keys and queries that spread over few directions, or over all.
QueryStatistics statistics(std::uint32_t seed, bool noise) {
  QueryStatistics statistics(d, rows, rows);
  Normal normal(seed);
  const Matrix mix = noise ? Matrix(Matrix::Identity(d, d)) : normal.matrix(5, d);
  const auto draw = [&] { return RowMatrix((normal.matrix(tokens, mix.rows()) * mix).cast<float>()); };
  const RowMatrix queries = draw(), values = draw();
  RowMatrix keys = draw();
  if (!noise) keys.rowwise() += Eigen::RowVectorXf::LinSpaced(d, -1, 1);
  const RotaryTable table = rotary();
  for (Index t = 0; t < tokens; ++t) Turn(table, t % rows).apply(keys.row(t).data());
  add_queries(statistics, {queries.data(), tokens, d});
  for (Index t = 0; t < tokens; t += rows) add_keys(statistics, {keys.row(t).data(), rows, d}, 0);
  add_values(statistics, {values.data(), tokens, d});
  return statistics;
}

struct Layer {
  explicit Layer(bool noise) {
    for (int head = 0; head < heads; ++head)
      statistics_.push_back(statistics(static_cast<std::uint32_t>(head + 1), noise));
  }

  std::vector<HeadRecord> learn(const Parallel &parallel = {}) const {
    return learn_heads({.coding = Coding::subspace,
                        .fit = AffineFit::clip_and_gain,
                        .key_bits = 2,
                        .head_dim = d,
                        .rotary = &table_,
                        .frame_rows = rows,
                        .heads = statistics_},
                       parallel);
  }

  RotaryTable table_ = rotary();
  std::vector<QueryStatistics> statistics_;
};

TEST(LearnHeads, LearnWhatEachWouldAlone) {
  const Layer layer(false);
  const std::vector<HeadRecord> found = layer.learn();
  ASSERT_EQ(found.size(), heads);
  const TileFrame frame(layer.table_, rows);
  for (std::size_t head = 0; head < heads; ++head) {
    KeyQuantizer quantizer(Coding::subspace, AffineFit::clip_and_gain, {}, 2, d);
    quantizer.learn(layer.statistics_[head], &frame);
    quantizer.round_basis();
    const HeadRecord expected = quantizer.record();
    EXPECT_EQ(found[head].matrix.codes, expected.matrix.codes);
    EXPECT_EQ(found[head].mean, expected.mean);
    EXPECT_EQ(found[head].variance, expected.variance);
    EXPECT_EQ(found[head].value_mean, rotated_value_mean(layer.statistics_[head]));
    EXPECT_FALSE(found[head].widths.empty());
  }
}

TEST(LearnHeads, TakeAnyThreads) {
  const Layer layer(false);
  const Parallel backwards = [](int count, Task task) {
    for (int i = count; i-- > 0;) task(i);
  };
  const std::vector<HeadRecord> found = layer.learn(backwards), expected = layer.learn();
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t head = 0; head < heads; ++head)
    EXPECT_EQ(found[head].matrix.codes, expected[head].matrix.codes);
}

TEST(LearnHeads, LearnNothingFromNoise) { EXPECT_TRUE(Layer(true).learn().empty()); }

}  // namespace
}  // namespace squat::test::learn_heads_test
