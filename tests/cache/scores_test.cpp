// What may become of scores (windows, caps, slopes, sinks' logits), what softmaxes come to, and queries
// that see everything: against attention in double precision over what the cache holds.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "reference/expect_error.hpp"
#include "reference/reference_attention.hpp"
#include "reference/score_rules.hpp"

namespace squat::test::scores_test {
namespace {

Options small(int query_heads = 6, int kv_heads = 2, int head_dim = 64) {
  Options options{.layers = 1, .query_heads = query_heads, .kv_heads = kv_heads, .head_dim = head_dim};
  options.residual = 20;
  options.page_tokens = 32;
  options.statistics_tokens = 60;
  return options;
}

template <int Bits>
struct Width {
  using Cache = KVCache<half, Bits>;
  static constexpr double tolerance = rounding_tolerance(Bits);
};

template <class W>
class Scores : public testing::Test {};
using Widths = testing::Types<Width<2>, Width<4>, Width<16>>;
TYPED_TEST_SUITE(Scores, Widths);

/// A prompt, steps and pieces, each against what the cache holds behind it: of the call's own rows, as
/// T.
TYPED_TEST(Scores, AreBentAsOptionsSay) {
  for (const Options &base : {small(), small(4, 4, 32), small(20, 1, 48)}) {
    for (const Options &options : score_rules(base)) {
      typename TypeParam::Cache cache(options);
      const SequenceId sequence = cache.add_sequence();
      Index past = 0;
      for (const Index piece : {150, 1, 70, 3, 1}) {
        SCOPED_TRACE(testing::Message()
                     << options.query_heads << "/" << options.kv_heads << ", window "
                     << options.attention_window << ", at " << past << " + " << piece);
        Inputs<> in(options, piece, static_cast<unsigned>(past + 5));
        for (auto *x : {&in.k, &in.v})
          for (float &element : x->elements) element = static_cast<float>(half(element));
        Contents held = contents(cache, sequence);
        for (auto [all, own] : {std::pair{&held.k, &in.k}, {&held.v, &in.v}}) {
          all->elements.insert(all->elements.end(), own->elements.begin(), own->elements.end());
          all->tokens += piece;
        }
        Tensor<float> lse(piece, options.query_heads, 1);
        cache.attend({{{sequence, piece}}}, 0,
                     AttentionTensors<float>{.q = in.q.view(),
                                             .k = in.k.view(),
                                             .v = in.v.view(),
                                             .out = in.out.view(),
                                             .lse = lse.view()});
        const RuleDistance distance =
            rule_distance(options, in.q.view(), held.k.view(), held.v.view(), in.out.view(), lse.view(),
                          [&](Index token) { return past + token + 1; });
        EXPECT_LT(distance.output, TypeParam::tolerance);
        EXPECT_LT(distance.lse, TypeParam::tolerance);
        past += piece;
      }
      EXPECT_GT(cache.memory_report().packed_tokens, 0);
    }
  }
}

TYPED_TEST(Scores, OfReadsMayMeetAllTokens) {
  const Options options = small();
  typename TypeParam::Cache cache(options);
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(options, 150, 3), queries(options, 170, 9);
  fill(cache, sequence, in, 0, 150);
  Tensor<float> lse(170, options.query_heads, 1);
  const Contents held = contents(cache, sequence);
  cache.attend(
      {{{sequence, 170}}}, 0,
      AttentionTensors<float>{
          .q = queries.q.view(), .out = queries.out.view(), .lse = lse.view(), .causal = false});
  const RuleDistance distance =
      rule_distance(options, queries.q.view(), held.k.view(), held.v.view(), queries.out.view(),
                    lse.view(), [](Index) { return Index{150}; });
  EXPECT_LT(distance.output, TypeParam::tolerance);
  EXPECT_LT(distance.lse, TypeParam::tolerance);
}

/// A context that lies in two sequences, merged, is that of one.
TEST(Scores, OfPartsMerge) {
  const Options options = small();
  KVCache<half, 16> cache(options);
  Inputs<> in(options, 150, 3), queries(options, 5, 9), merged(options, 5, 9);
  const auto ask = [&](Index first, Index count, Inputs<> &found, Tensor<float> &lse) {
    const SequenceId sequence = cache.add_sequence();
    fill(cache, sequence, in, first, count);
    cache.attend(
        {{{sequence, 5}}}, 0,
        AttentionTensors<float>{
            .q = queries.q.view(), .out = found.out.view(), .lse = lse.view(), .causal = false});
  };
  Inputs<> early(options, 5, 1), late(options, 5, 1), all(options, 5, 1), none(options, 5, 1);
  Tensor<float> of_early(5, options.query_heads, 1), of_late = of_early, of_all = of_early,
                                                     of_none = of_early, lse = of_early;
  ask(0, 90, early, of_early);
  ask(90, 60, late, of_late);
  ask(0, 150, all, of_all);
  std::fill(of_none.elements.begin(), of_none.elements.end(), -INFINITY);
  const std::vector<AttentionPart<float>> parts = {{early.out.view(), of_early.view()},
                                                   {none.out.view(), of_none.view()},
                                                   {late.out.view(), of_late.view()}};
  merge_attention<float>(parts, merged.out.view(), lse.view());
  for (std::size_t i = 0; i < all.out.elements.size(); ++i)
    EXPECT_NEAR(merged.out.elements[i], all.out.elements[i], 1e-5);
  for (std::size_t i = 0; i < of_all.elements.size(); ++i)
    EXPECT_NEAR(lse.elements[i], of_all.elements[i], 1e-5);
  EXPECT_THROW(merge_attention<float>(parts, in.out.view()), Error);
}

TEST(Scores, AskForSensibleOptions) {
  const auto expect_refused = [](auto &&change, const std::string &words) {
    Options options = small();
    change(options);
    expect_error([&] { KVCache<half, 2> cache(options); }, {words});
  };
  expect_refused([](Options &options) { options.attention_window = -1; }, "attention_window is -1");
  expect_refused([](Options &options) { options.soft_cap = -2; }, "soft_cap is -2");
  expect_refused([](Options &options) { options.soft_cap = NAN; }, "soft_cap");
  expect_refused([](Options &options) { options.alibi_slopes = {1, 2}; }, "alibi_slopes.size is 2");
  expect_refused([](Options &options) { options.sink_logits = {1}; }, "sink_logits.size is 1");
  expect_refused([](Options &options) { options.sink_logits.assign(6, INFINITY); },
                 "sink_logits is inf");
}

TEST(Scores, AskForTensorsThatFit) {
  const Options options = small();
  KVCache<half, 2> cache(options);
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(options, 4, 3);
  Tensor<float> lse(3, options.query_heads, 1);
  AttentionTensors<float> tensors{
      .q = in.q.view(), .k = in.k.view(), .v = in.v.view(), .out = in.out.view(), .lse = lse.view()};
  const std::vector<SequenceTokens> batch = {{sequence, 4}};
  EXPECT_THROW(cache.attend(batch, 0, tensors), Error);
  tensors.lse = {};
  tensors.causal = false;
  EXPECT_THROW(cache.attend(batch, 0, tensors), Error);
  EXPECT_EQ(cache.length(sequence), 0);
}

}  // namespace
}  // namespace squat::test::scores_test
