// Drafts: trees of proposed tokens attend as each path would if it were appended, and leave no trace.

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "reference/drafts.hpp"
#include "reference/expect_error.hpp"
#include "reference/reference_attention.hpp"
#include "reference/saved.hpp"
#include "squat/squat.hpp"

namespace squat::test::draft_test {
namespace {

Options drafting(Coding coding = Coding::subspace, int head_dim = 64) {
  return {.layers = 1,
          .query_heads = 6,
          .kv_heads = 2,
          .head_dim = head_dim,
          .coding = coding,
          .tail = TailCoding::exact,
          .residual = 20,
          .page_tokens = 32,
          .statistics_tokens = 60};
}

template <class S>
Tensor<S> rows_of(Tensor<S> &from, const std::vector<Index> &rows) {
  Tensor<S> some(static_cast<Index>(rows.size()), from.heads, from.head_dim);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto row = from.view(rows[i], 1);
    std::copy_n(row.data, row.token_stride, some.view(static_cast<Index>(i), 1).data);
  }
  return some;
}

template <class S>
AttentionTensors<S> tensors_of(Inputs<S> &in) {
  return {.q = in.q.view(), .k = in.k.view(), .v = in.v.view(), .out = in.out.view()};
}

/// Relative distance of the last rows of a from those of b.
template <class S>
double distance(TensorView<S> a, TensorView<S> b) {
  double difference = 0, norm = 0;
  for (Index head = 0; head < a.heads; ++head) {
    for (Index i = 0; i < a.head_dim; ++i) {
      const auto x = static_cast<double>(a.row(0, head)[i]), y = static_cast<double>(b.row(0, head)[i]);
      difference += (x - y) * (x - y);
      norm += y * y;
    }
  }
  return std::sqrt(difference / norm);
}

/// Expects a draft to find what forks do to which the paths of its tokens are appended in one call: for
/// packed pages, up to what kernels round where a call has other rows.
template <class T, int Bits, class S = float>
void check(const Options &options, Index cached, const std::vector<Index> &parents,
           double tolerance = 2e-6) {
  double of_sums = 1e-4;
  if (Bits < 16 && cached >= options.statistics_tokens) tolerance = of_sums = rounding_tolerance(Bits);
  KVCache<T, Bits> cache(options);
  const SequenceId sequence = cache.add_sequence();
  if (cached > 0) {
    Inputs<S> prompt(options, cached, 5);
    cache.attend(sequence, 0, prompt.q.view(), prompt.k.view(), prompt.v.view(), prompt.out.view());
  }
  const Bytes before = saved(cache, sequence);
  const auto tokens = static_cast<Index>(parents.size());
  Inputs<S> in(options, tokens, 9);
  Tensor<float> lse(tokens, options.query_heads, 1);
  AttentionTensors<S> tensors = tensors_of(in);
  tensors.lse = lse.view();
  const std::array batch{SequenceTokens{sequence, tokens}};
  cache.draft(batch, 0, tensors, parents);
  EXPECT_EQ(saved(cache, sequence), before);

  for (Index token = 0; token < tokens; ++token) {
    SCOPED_TRACE("token " + std::to_string(token));
    const std::vector<Index> path = path_to(parents, token);
    const auto length = static_cast<Index>(path.size());
    Tensor<S> q = rows_of(in.q, path), k = rows_of(in.k, path), v = rows_of(in.v, path);
    Tensor<S> out(length, options.query_heads, options.head_dim);
    Tensor<float> expected_lse(length, options.query_heads, 1);
    const SequenceId fork = cache.fork(sequence);
    cache.attend(
        std::array{SequenceTokens{fork, length}}, 0,
        AttentionTensors<S>{
            .q = q.view(), .k = k.view(), .v = v.view(), .out = out.view(), .lse = expected_lse.view()});
    EXPECT_LE(distance(in.out.view(token, 1), out.view(length - 1, 1)), tolerance);
    for (Index head = 0; head < options.query_heads; ++head)
      EXPECT_NEAR(*lse.view().row(token, head), *expected_lse.view().row(length - 1, head), of_sums);
    cache.remove_sequence(fork);
  }
}

TEST(Draft, OfOneRootIsADecodeStep) { check<half, 2>(drafting(), 300, {-1}); }

TEST(Draft, OfATreeSeesItsPaths) {
  for (const Coding coding : {Coding::plain, Coding::orthogonal, Coding::subspace}) {
    check<half, 2>(drafting(coding), 300, {-1, 0, 0, 1, 1, 2, -1, 6, 3});
    check<half, 4>(drafting(coding), 300, tree_of(23, 1));
  }
  check<float, 3>(drafting(Coding::subspace, 48), 211, tree_of(40, 2));
  check<half, 16>(drafting(Coding::plain, 32), 300, tree_of(17, 3));
}

TEST(Draft, MayStandAloneOrBehindAFewTokens) {
  for (const Index cached : {0, 1, 3, 21, 59}) check<float, 2>(drafting(), cached, tree_of(9, 4));
}

TEST(Draft, MayBeLong) {
  Options options = drafting();
  options.query_heads = 2;
  options.kv_heads = 1;
  check<float, 2>(options, 150, chain_of(256), 1e-5);  // sums of other orders
}

TEST(Draft, CountsItsRowsAsTheCacheKeepsThem) {
  check<half, 2, float>(drafting(), 100, tree_of(8, 5));
  check<bfloat16, 2, float>(drafting(), 100, tree_of(8, 6));
  check<half, 2, half>(drafting(), 100, tree_of(8, 7), 1e-3);
}

TEST(Draft, GoesByTheRulesOfScores) {
  Options options = drafting();
  options.soft_cap = 5;
  options.alibi_slopes = {.5f, .25f, .125f, .0625f, .03125f, .015625f};
  options.sink_logits = {0, 1, 2, -1, .5f, 3};
  check<half, 2>(options, 300, tree_of(21, 8));
  for (const int window : {3, 7, 50, 200}) {
    SCOPED_TRACE(window);
    options.attention_window = window;
    check<half, 2>(options, 300, tree_of(21, 9));
    check<half, 16>(options, 300, tree_of(40, 10));
  }
}

TEST(Draft, OfSeveralSequencesKeepsThemApart) {
  const Options options = drafting();
  KVCache<half, 2> cache(options);
  const std::array sequences{cache.add_sequence(), cache.add_sequence(), cache.add_sequence()};
  Inputs<> prompt(options, 400, 5);
  Index first = 0;
  for (const SequenceId sequence : sequences) {
    cache.append(sequence, 0, prompt.k.view(first, 70 + first), prompt.v.view(first, 70 + first));
    first += 60;
  }
  const std::vector<Index> parents = {-1, 0, 0, /**/ -1, -1, 1, 2, /**/ -1};
  Inputs<> in(options, 8, 9);
  const std::array batch{SequenceTokens{sequences[2], 3}, SequenceTokens{sequences[0], 4},
                         SequenceTokens{sequences[1], 1}};
  cache.draft(batch, 0, tensors_of(in), parents);
  const Tensor<float> together = in.out;
  first = 0;
  for (const SequenceTokens &entry : batch) {
    const AttentionTensors<float> alone{.q = in.q.view(first, entry.tokens),
                                        .k = in.k.view(first, entry.tokens),
                                        .v = in.v.view(first, entry.tokens),
                                        .out = in.out.view(first, entry.tokens)};
    cache.draft(std::array{entry}, 0, alone,
                std::span(parents).subspan(static_cast<std::size_t>(first),
                                           static_cast<std::size_t>(entry.tokens)));
    for (Index token = first; token < first + entry.tokens; ++token) {
      Tensor<float> expected = together;
      EXPECT_LE(distance(in.out.view(token, 1), expected.view(token, 1)), 1e-6);
    }
    first += entry.tokens;
  }
}

TEST(Draft, ThatCannotBeIsRefused) {
  const Options options = drafting();
  KVCache<half, 2> cache(options);
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(options, 300, 9);
  const auto error_of = [&](Index tokens, std::vector<Index> parents,
                            bool causal = true) -> std::string {
    const AttentionTensors<float> tensors{.q = in.q.view(0, tokens),
                                          .k = in.k.view(0, tokens),
                                          .v = in.v.view(0, tokens),
                                          .out = in.out.view(0, tokens),
                                          .causal = causal};
    return refusal_of([&] {
      cache.draft(std::array{SequenceTokens{sequence, tokens}}, 0, tensors, parents);
    });
  };
  EXPECT_EQ(error_of(2, {-1, 0}), "none");
  EXPECT_EQ(error_of(2, {-1}), "squat: parents.size is 1, must be the tokens of q, 2");
  EXPECT_EQ(error_of(2, {-1, 1}), "squat: parents is 1, must be -1 to 0");
  EXPECT_EQ(error_of(2, {-2, 0}), "squat: parents is -2, must be -1 to -1");
  EXPECT_EQ(error_of(2, {-1, 0}, false), "squat: causal is 0, must be true in a draft");
  EXPECT_EQ(error_of(257, std::vector<Index>(257, -1)), "squat: batch.tokens is 257, must be 0 to 256");
  in.k.elements[5] = std::nanf("");
  EXPECT_NE(error_of(2, {-1, 0}).find("squat: k"), std::string::npos);
  EXPECT_EQ(cache.length(sequence), 0);
}

}  // namespace
}  // namespace squat::test::draft_test
