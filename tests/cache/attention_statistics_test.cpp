// What a cache finds errors in far keys and values to do to its attention is what double precision
// finds: in one call and in pieces, with sinks, for heads that share keys and for sequences that share a
// call.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"
#include "squat/coding/moments.hpp"
#include "squat/coding/observation.hpp"

namespace squat::test::attention_statistics_test {
namespace {

struct Sums {
  explicit Sums(Index d) : moment(Matrix::Zero(d, d)) {}
  double queries = 0, key_weight = 0, value_weight = 0, output_square = 0;
  Matrix moment;
};

/// Adds what the definitions in coding/attention_weights.hpp say of one sequence and KV head, row by
/// row.
void add_expected(const Options &options, const Inputs<> &in, Index tokens, Index kv_head, Sums &sums) {
  const Index d = options.head_dim, shared = options.query_heads / options.kv_heads;
  const double scale = 1 / std::sqrt(static_cast<double>(d));
  const auto row = [&](const Tensor<float> &x, Index token, Index head) -> Eigen::RowVectorXd {
    return Eigen::Map<const Eigen::RowVectorXf>(x.view().row(token, head), d).cast<double>();
  };
  for (Index t = 0; t < tokens; ++t) {
    const double step = Observation::weighed_tokens(t);
    if (step == 0) continue;
    for (Index head = kv_head * shared; head < (kv_head + 1) * shared; ++head) {
      Eigen::ArrayXd a(t + 1);
      for (Index s = 0; s <= t; ++s) a[s] = scale * row(in.q, t, head).dot(row(in.k, s, kv_head));
      a = softmax(a);
      Eigen::RowVectorXd output = Eigen::RowVectorXd::Zero(d);
      for (Index s = 0; s <= t; ++s) output += a[s] * row(in.v, s, kv_head);
      double key = 0, value = 0;
      for (Index s = options.sinks; s <= t - options.residual; ++s) {
        key += a[s] * a[s] * (row(in.v, s, kv_head) - output).squaredNorm();
        value += a[s] * a[s] * row(in.v, s, kv_head).squaredNorm();
      }
      const double weight = step * scale * scale * key;
      sums.queries += options.sinks <= t - options.residual ? step : 0;
      sums.key_weight += weight;
      sums.value_weight += step * value;
      sums.output_square += step * output.squaredNorm();
      const Observation observation{options.sinks, *options.tile_tokens};
      for (Index base : observation.bases(t)) {
        std::vector<float> q(in.q.view().row(t, head), in.q.view().row(t, head) + d);
        Turn(options.rotary[0], -base).apply(q.data());
        const Eigen::RowVectorXd x = Eigen::Map<Eigen::RowVectorXf>(q.data(), d).cast<double>();
        sums.moment += weight / Observation::query_bases * x.transpose() * x;
      }
    }
  }
}

void expect_sums(const QueryStatistics &found, const Sums &expected) {
  const auto expect_near = [](double x, double y) { EXPECT_NEAR(x, y, 1e-5 * std::abs(y)); };
  EXPECT_EQ(found.sums(&HeadSums::far_queries)[0], expected.queries);
  expect_near(found.sums(&HeadSums::key_weight)[0], expected.key_weight);
  expect_near(found.sums(&HeadSums::value_weight)[0], expected.value_weight);
  expect_near(found.sums(&HeadSums::output_square)[0], expected.output_square);
  EXPECT_LT((query_moment(found, &HeadSums::weighted_moment) - expected.moment).norm(),
            1e-5 * expected.moment.norm());
}

Options small() {
  Options options{.layers = 1, .query_heads = 6, .kv_heads = 2, .head_dim = 32};
  options.sinks = 3;
  options.residual = 16;
  options.page_tokens = 32;
  options.statistics_tokens = 600;
  options.rotary = {rotary_table(1e4, 32)};
  options.tile_tokens = 64;
  options.tail = TailCoding::exact;
  options.keep_statistics = true;
  return options;
}

TEST(AttentionStatistics, OfAPromptAreThoseOfDoublePrecisionInAnyPieces) {
  const Options options = small();
  constexpr Index tokens = 560;  // beyond those that are all weighed
  Inputs<> in(options, tokens, 1);
  // Keys that queries look at far more than at others, so that weights differ.
  for (Index token = 20; token < tokens; token += 37) {
    for (Index head = 0; head < options.kv_heads; ++head) {
      for (Index i = 0; i < options.head_dim; ++i) in.k.view().row(token, head)[i] *= 4;
    }
  }
  std::vector<Sums> expected(2, Sums(options.head_dim));
  for (Index head : {0, 1}) {
    add_expected(options, in, tokens, head, expected[static_cast<std::size_t>(head)]);
    ASSERT_GT(expected[static_cast<std::size_t>(head)].key_weight, 0);
  }
  for (const Index piece : {tokens, Index{61}, Index{1}}) {
    KVCache<float, 2> cache(options);
    const SequenceId sequence = cache.add_sequence();
    for (Index first = 0; first < tokens; first += piece) {
      const Index count = std::min(piece, tokens - first);
      cache.append(sequence, 0, in.q.view(first, count), in.k.view(first, count),
                   in.v.view(first, count));
    }
    const Prior statistics = cache.statistics();
    for (Index head : {0, 1})
      expect_sums(statistics.head(0, head), expected[static_cast<std::size_t>(head)]);
  }
}

TEST(AttentionStatistics, OfSequencesOfACallAddUp) {
  const Options options = small();
  Inputs<> first(options, 120, 1), second(options, 90, 7), both(options, 210, 0);
  Sums expected(options.head_dim);
  add_expected(options, first, 120, 1, expected);
  add_expected(options, second, 90, 1, expected);
  const auto join = [](Tensor<float> &to, const Tensor<float> &a, const Tensor<float> &b) {
    std::copy(b.elements.begin(), b.elements.end(),
              std::copy(a.elements.begin(), a.elements.end(), to.elements.begin()));
  };
  join(both.q, first.q, second.q);
  join(both.k, first.k, second.k);
  join(both.v, first.v, second.v);
  KVCache<float, 2> cache(options);
  const SequenceTokens batch[] = {{cache.add_sequence(), 120}, {cache.add_sequence(), 90}};
  cache.append(batch, 0, both.q.view(), both.k.view(), both.v.view());
  expect_sums(cache.statistics().head(0, 1), expected);
}

TEST(AttentionStatistics, AreZeroWhereNoTokenIsFar) {
  const Options options = small();
  Inputs<> in(options, 18, 1);
  KVCache<float, 2> cache(options);
  cache.append(cache.add_sequence(), 0, in.q.view(), in.k.view(), in.v.view());
  const Prior statistics = cache.statistics();
  EXPECT_EQ(statistics.head(0, 0).sums(&HeadSums::far_queries)[0], 0);
  EXPECT_FALSE(has_attention_weights(statistics.head(0, 0)));
}

TEST(AttentionStatistics, AreNotGatheredUnlessTheyAreWanted) {
  Options options = small();
  Inputs<> in(options, 100, 1);
  options.keep_statistics = false;
  KVCache<float, 2> cache(options);
  cache.append(cache.add_sequence(), 0, in.q.view(), in.k.view(), in.v.view());
  EXPECT_FALSE(has_attention_weights(cache.statistics().head(0, 0)));
  options.allocation = Allocation::layer;
  KVCache<float, 2> by_layer(options);
  by_layer.append(by_layer.add_sequence(), 0, in.q.view(), in.k.view(), in.v.view());
  EXPECT_TRUE(has_attention_weights(by_layer.statistics().head(0, 0)));
}

}  // namespace
}  // namespace squat::test::attention_statistics_test
