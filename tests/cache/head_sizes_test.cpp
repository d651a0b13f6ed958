// Heads of any size, and values of another than keys: the cache is, number for number, one of the next
// larger heads that kernels take, whose further channels are zeros.

#include "reference/head_sizes.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "reference/expect_error.hpp"
#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"
#include "reference/saved.hpp"
#include "reference/score_rules.hpp"
#include "squat/squat.hpp"

namespace squat::test::head_sizes_test {
namespace {

Options options_of(const Sizes &sizes) { return options_of(sizes, std::min(sizes.head_dim, 40)); }

template <class S, int KeyBits, int ValueBits>
void expect_a_larger_head_with_zeros(const Sizes &sizes) {
  SCOPED_TRACE(testing::Message() << sizes.head_dim << "/" << sizes.value_dim << " in " << sizes.padded);
  const Options options = options_of(sizes);
  Options larger = options;
  larger.head_dim = larger.value_dim = sizes.padded;
  larger.attention_scale = 1 / std::sqrt(static_cast<float>(sizes.head_dim));
  KVCache<half, KeyBits, ValueBits> cache(options), wide(larger);
  EXPECT_EQ(cache.options().head_dim, sizes.head_dim);
  EXPECT_EQ(cache.options().value_dim, sizes.value_dim);
  SequenceId a = cache.add_sequence(), b = wide.add_sequence();
  const auto share = [](SequenceId sequence, Index tokens) {
    return std::array{SequenceTokens{sequence, tokens}};
  };
  for (const Index tokens : {90, 1, 1, 30}) {
    TwoSizes<S> in(sizes, tokens, static_cast<unsigned>(tokens));
    cache.attend(share(a, tokens), 0, in.tensors());
    wide.attend(share(b, tokens), 0, in.wide());
    in.expect_same();
  }
  TwoSizes<S> next(sizes, 3, 9);
  cache.append(a, 0, next.k.view(), next.v.view());
  wide.append(b, 0, next.wide_k.view(), next.wide_v.view());
  const std::array<Index, 3> parents = {-1, 0, 0};
  cache.draft(share(a, 3), 0, next.tensors(), parents);
  wide.draft(share(b, 3), 0, next.wide(), parents);
  next.expect_same();
  EXPECT_EQ(saved(cache, a), saved(wide, b));
  a = cache.load(saved(cache, a));
  b = wide.fork(b);
  cache.shift(a, 10, 50, -40);
  wide.shift(b, 10, 50, -40);
  AttentionTensors<S> read = next.tensors(), wide_read = next.wide();
  read.k = read.v = wide_read.k = wide_read.v = {};
  cache.attend(share(a, 3), 0, read);
  wide.attend(share(b, 3), 0, wide_read);
  next.expect_same();
  TwoSizes<S> held(sizes, cache.length(a), 1);
  cache.dequantize(a, 0, held.k.view(), held.v.view());
  wide.dequantize(b, 0, held.wide_k.view(), held.wide_v.view());
  EXPECT_EQ(held.k.elements, resized(held.wide_k, sizes.head_dim).elements);
  EXPECT_EQ(held.v.elements, resized(held.wide_v, sizes.value_dim).elements);
  const double elements = sizes.head_dim + sizes.value_dim, stored = 2.0 * sizes.padded;
  EXPECT_NEAR(cache.memory_report().packed_bits_per_element,
              wide.memory_report().packed_bits_per_element * stored / elements, 1e-9);
}

constexpr Sizes all_sizes[] = {{8, 8, 16},      {20, 20, 32},         {72, 72, 80},    {88, 88, 96},
                               {100, 100, 112}, {120, 120, 128},      {192, 128, 192}, {64, 128, 128},
                               {100, 36, 112},  {576, 512, 576, 8, 1}};

TEST(HeadSizes, AreLargerHeadsWithZeros) {
  for (const Sizes &sizes : all_sizes) {
    expect_a_larger_head_with_zeros<float, 2, 2>(sizes);
    expect_a_larger_head_with_zeros<half, 4, 3>(sizes);
    expect_a_larger_head_with_zeros<bfloat16, 16, 16>(sizes);
  }
}

/// Tensors of which the call names some rows, with others between: these are neither read nor written.
TEST(HeadSizes, LeavePaddingRowsAlone) {
  const Sizes sizes{72, 40, 80};
  KVCache<float, 2> cache(options_of(sizes));
  const std::array batch{SequenceTokens{cache.add_sequence(), 2, 1},
                         SequenceTokens{cache.add_sequence(), 1, 5}};
  TwoSizes<float> in(sizes, 7, 3);
  for (const Index row : {0, 3, 4, 6}) std::fill_n(in.k.view().row(row, 0), 2 * 72, NAN);
  std::fill(in.out.elements.begin(), in.out.elements.end(), -3.0f);
  cache.attend(batch, 0, in.tensors());
  for (Index row = 0; row < 7; ++row) {
    const bool named = row == 1 || row == 2 || row == 5;
    EXPECT_EQ(*in.out.view().row(row, 0) != -3.0f, named) << row;
  }
}

/// One KV head of latents for 128 query heads, as DeepSeek's absorbed attention has them: against double
/// precision.
TEST(HeadSizes, OfLatentAttention) {
  const Sizes sizes{576, 512, 576, 128, 1};
  Options options = options_of(sizes);
  KVCache<float, 16> cache(options);
  const SequenceId sequence = cache.add_sequence();
  TwoSizes<float> prompt(sizes, 70, 3), step(sizes, 1, 8);
  cache.append(sequence, 0, prompt.k.view(), prompt.v.view());
  cache.append(sequence, 0, step.k.view(), step.v.view());
  Tensor<float> k(71, 1, 576), v(71, 1, 512);
  cache.dequantize(sequence, 0, k.view(), v.view());
  AttentionTensors<float> read = step.tensors();
  read.k = read.v = {};
  const std::array batch{SequenceTokens{sequence, 1}};
  cache.attend(batch, 0, read);
  const RuleDistance distance = rule_distance(
      options, std::as_const(step.q).view(), std::as_const(k).view(), std::as_const(v).view(),
      std::as_const(step.out).view(), std::as_const(step.lse).view(), [](Index) { return Index{71}; });
  EXPECT_LT(distance.output, 1e-3);
  EXPECT_LT(distance.lse, 1e-3);
}

TEST(HeadSizes, AreRefusedBeyondLimits) {
  const auto expect_refused = [](int head_dim, int value_dim, const std::string &name) {
    const Options options{
        .layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = head_dim, .value_dim = value_dim};
    expect_error([&] { KVCache<float, 2> cache(options); }, {name});
  };
  expect_refused(7, 0, "head_dim");
  expect_refused(577, 0, "head_dim");
  expect_refused(64, 7, "value_dim");
  expect_refused(64, 577, "value_dim");
  expect_refused(64, -1, "value_dim");
  KVCache<float, 2> cache(
      {.layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = 24, .value_dim = 9});
  Tensor<float> q(1, 2, 24), k(1, 1, 24), v(1, 1, 24), out(1, 2, 9);
  const SequenceId sequence = cache.add_sequence();
  EXPECT_THROW(cache.attend(sequence, 0, q.view(), k.view(), v.view(), out.view()), Error);
  EXPECT_EQ(cache.length(sequence), 0);
}

/// The published settings halve a head.
TEST(HeadSizes, PublishedSettingsFit) {
  for (const int head_dim : {72, 80, 100, 128}) {
    const Options options =
        published_squat({.layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = head_dim});
    EXPECT_NO_THROW((KVCache<float, 2>(options))) << head_dim;
  }
}

}  // namespace
}  // namespace squat::test::head_sizes_test
