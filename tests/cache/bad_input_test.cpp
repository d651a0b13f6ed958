// Every bad argument is a squat::Error that names it and the limit, and leaves the cache as it was.

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "reference/expect_error.hpp"
#include "reference/reference_attention.hpp"

namespace squat::test::bad_input_test {
namespace {

Options valid() {
  return {.layers = 2,
          .query_heads = 4,
          .kv_heads = 2,
          .head_dim = 32,
          .coding = Coding::orthogonal,
          .residual = 8,
          .page_tokens = 16,
          .statistics_tokens = 30};
}

void expect_refused(const std::function<void(Options &)> &spoil, const std::vector<std::string> &words) {
  Options options = valid();
  spoil(options);
  expect_error([&] { KVCache<float, 2> cache(options); }, words);
}

TEST(BadOptions, AreRefused) {
  for (int bad : {0, -1}) {
    const std::string value = std::to_string(bad);
    expect_refused([&](Options &o) { o.layers = bad; }, {"layers", value});
    expect_refused([&](Options &o) { o.query_heads = bad; }, {"query_heads", value});
    expect_refused([&](Options &o) { o.kv_heads = bad; }, {"kv_heads", value});
    expect_refused([&](Options &o) { o.head_dim = bad; }, {"head_dim", value, "8"});
    expect_refused([&](Options &o) { o.page_tokens = bad; }, {"page_tokens", value, "16"});
  }
  expect_refused([](Options &o) { o.query_heads = 5; }, {"query_heads", "5", "multiple", "2"});
  expect_refused([](Options &o) { o.head_dim = 7; }, {"head_dim", "7", "8 to 576"});
  expect_refused([](Options &o) { o.head_dim = std::numeric_limits<int>::max(); }, {"head_dim", "576"});
  expect_refused([](Options &o) { o.layers = std::numeric_limits<int>::max(); }, {"layers"});
  expect_refused([](Options &o) { o.page_tokens = 24; }, {"page_tokens", "24", "multiple of 16"});
  expect_refused([](Options &o) { o.page_tokens = 2048; }, {"page_tokens", "2048", "1024"});
  const auto trellis = [](Options &o) {
    o.page_tokens = 32;
    o.codes = Codes::trellis;
  };
  expect_refused([&](Options &o) { trellis(o), o.head_dim = 48; },
                 {"head_dim", "48", "multiple of 32", "trellis"});
  expect_refused([&](Options &o) { trellis(o), o.page_tokens = 16; },
                 {"page_tokens", "16", "multiple of 32", "trellis"});
  expect_refused([](Options &o) { o.sinks = -1; }, {"sinks", "-1"});
  expect_refused([](Options &o) { o.residual = -3; }, {"residual", "-3"});
  expect_refused([](Options &o) { o.statistics_tokens = -1; }, {"statistics_tokens", "-1"});
  expect_refused([](Options &o) { o.attention_scale = NAN; }, {"attention_scale", "nan"});
  expect_refused([](Options &o) { o.rotary = std::vector<RotaryTable>(3); },
                 {"rotary.size", "3", "layers", "2"});
  expect_refused([](Options &o) { o.rotary = {{.inverse_frequencies = std::vector<float>(17)}}; },
                 {"rotary.inverse_frequencies.size", "17", "16"});
  expect_refused(
      [](Options &o) {
        o.rotary = {{.inverse_frequencies = {1, NAN}}};
      },
      {"rotary.inverse_frequencies", "nan"});
  expect_refused([](Options &o) { o.tile_tokens = 256; }, {"tile_tokens", "256", "rotary"});
  expect_refused([](Options &o) { o.tile_tokens = -1; }, {"tile_tokens", "-1"});
  expect_refused([](Options &o) { o.orthogonal.rank = 33; }, {"orthogonal.rank", "33", "32"});
  expect_refused([](Options &o) { o.orthogonal.block = 5; }, {"orthogonal.block", "5", "32"});
  expect_refused([](Options &o) { o.orthogonal.lambda = -1; }, {"orthogonal.lambda", "-1"});
}

/// A cache with some tokens in it, and calls that must not change it.
class BadCall : public testing::Test {
 protected:
  BadCall() : cache(options()), sequence(cache.add_sequence()), in(options(), 60, 1) {
    cache.attend(sequence, 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
    cache.attend(sequence, 1, in.q.view(), in.k.view(), in.v.view(), in.out.view());
  }

  static Options options() {
    Options filled = valid();
    filled.max_pages = 6;
    return filled;
  }

  void refused(const std::function<void()> &call, const std::vector<std::string> &words) {
    const Contents first = contents(cache, sequence, 0), second = contents(cache, sequence, 1);
    const MemoryReport before = cache.memory_report();
    expect_error(call, words);
    EXPECT_EQ(contents(cache, sequence, 0), first);
    EXPECT_EQ(contents(cache, sequence, 1), second);
    const MemoryReport after = cache.memory_report();
    EXPECT_EQ(after.pages_used, before.pages_used);
    EXPECT_EQ(after.exact_tokens, before.exact_tokens);
    EXPECT_EQ(after.packed_tokens, before.packed_tokens);
  }

  void refused_views(TensorView<float> q, TensorView<float> k, TensorView<float> v,
                     TensorView<float> out, const std::vector<std::string> &words) {
    refused([&] { cache.attend(sequence, 0, q, k, v, out); }, words);
  }

  KVCache<half, 2> cache;
  SequenceId sequence;
  Inputs<> in;
};

TEST_F(BadCall, Shapes) {
  const auto q = in.q.view(0, 5), k = in.k.view(0, 5), v = in.v.view(0, 5), out = in.out.view(0, 5);
  const auto with = [](TensorView<float> view, Index TensorView<float>::*member, Index value) {
    view.*member = value;
    return view;
  };
  using View = TensorView<float>;
  refused_views(with(q, &View::heads, 3), k, v, out, {"q.heads", "3", "4"});
  refused_views(q, with(k, &View::heads, 4), v, out, {"k.heads", "4", "2"});
  refused_views(q, k, with(v, &View::head_dim, 64), out, {"v.head_dim", "64", "32"});
  refused_views(q, k, v, with(out, &View::head_dim, 16), {"out.head_dim", "16", "32"});
  refused_views(q, with(k, &View::tokens, 4), v, out, {"k.tokens", "4", "5"});
  refused_views(q, k, v, with(out, &View::tokens, 6), {"out.tokens", "6", "5"});
  for (Index bad : {Index{0}, Index{-1}, std::numeric_limits<Index>::min()}) {
    refused_views(with(q, &View::tokens, bad), k, v, out, {"tokens", std::to_string(bad)});
  }
  refused_views(with(q, &View::tokens, std::numeric_limits<Index>::max()), k, v, out, {});
  refused_views(q, with(k, &View::token_stride, 63), v, out, {"k.token_stride", "63", "64"});
  refused_views(q, with(k, &View::token_stride, -64), v, out, {"k.token_stride", "-64"});
  refused_views(q, with(k, &View::token_stride, std::numeric_limits<Index>::max()), v, out,
                {"k.token_stride"});
  refused_views(q, k, with(v, &View::head_stride, 31), out, {"v.head_stride", "31", "32"});
  refused_views(q, k, with(v, &View::head_stride, std::numeric_limits<Index>::max() / 2), out,
                {"v.head_stride"});
}

TEST_F(BadCall, Pointers) {
  const auto q = in.q.view(0, 5), k = in.k.view(0, 5), v = in.v.view(0, 5), out = in.out.view(0, 5);
  auto null = k;
  null.data = nullptr;
  refused_views(q, null, v, out, {"k.data", "null"});
  auto null_out = out;
  null_out.data = nullptr;
  refused_views(q, k, v, null_out, {"out.data", "null"});
  auto odd = k;
  odd.data = reinterpret_cast<float *>(reinterpret_cast<std::uintptr_t>(k.data) + 1);
  refused_views(q, odd, v, out, {"k.data", "aligned"});
}

TEST_F(BadCall, Elements) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                    -std::numeric_limits<float>::infinity(), 1e5f}) {
    for (auto *tensor : {&in.q, &in.k, &in.v}) {
      float &element = tensor->view().row(3, 1)[7];
      const float good = std::exchange(element, bad);
      const char *name = tensor == &in.q ? "q[3,1,7]" : tensor == &in.k ? "k[3,1,7]" : "v[3,1,7]";
      refused_views(in.q.view(0, 5), in.k.view(0, 5), in.v.view(0, 5), in.out.view(0, 5),
                    {name, "65504"});
      element = good;
    }
  }
  in.q.elements[0] = 65504.004f;
  refused([&] { cache.attend(sequence, 0, in.q.view(0, 1), in.out.view(0, 1)); },
          {"q[0,0,0] is 65504.004,", "at most 65504"});
  in.q.elements[0] = NAN;
  refused([&] { cache.attend(sequence, 0, in.q.view(0, 1), in.out.view(0, 1)); }, {"q[0,0,0]", "nan"});
  refused([&] { cache.append(sequence, 0, in.q.view(0, 1), in.k.view(0, 1), in.v.view(0, 1)); },
          {"q[0,0,0]", "nan"});
}

TEST_F(BadCall, LayersAndSequences) {
  const auto call = [&](SequenceId id, int layer) {
    cache.append(id, layer, in.k.view(0, 1), in.v.view(0, 1));
  };
  refused([&] { call(sequence, 2); }, {"layer", "2", "0 to 1"});
  refused([&] { call(sequence, -1); }, {"layer", "-1"});
  refused([&] { call({99}, 0); }, {"sequence", "99"});
  const SequenceId removed = cache.add_sequence();
  cache.remove_sequence(removed);
  refused([&] { call(removed, 0); }, {"sequence", std::to_string(removed.value)});
  refused([&] { cache.remove_sequence(removed); }, {"sequence"});
  refused([&] { cache.truncate(removed, 0); }, {"sequence"});
  refused([&] { cache.fork(removed); }, {"sequence"});
  refused([&] { (void)cache.freed_if_removed(removed); }, {"sequence"});
  refused([&] { (void)cache.length(sequence, 7); }, {"layer", "7"});
}

TEST_F(BadCall, Batches) {
  const SequenceId other = cache.add_sequence();
  const auto call = [&](std::vector<SequenceTokens> batch) {
    cache.append(std::span<const SequenceTokens>(batch), 0, in.k.view(0, 5), in.v.view(0, 5));
  };
  refused([&] { call({{sequence, 3}, {sequence, 2}}); }, {"batch.sequence", "once"});
  refused([&] { call({{sequence, 3}, {other, 1}}); }, {"tokens", "5", "4"});
  refused([&] { call({{sequence, 3}, {other, 3}}); }, {"batch.tokens", "3", "2"});
  refused([&] { call({{sequence, 4}, {other, 0}}); }, {"tokens", "5", "4"});
  refused([&] { call({{sequence, 3}, {other, 2, 2}}); }, {"batch.first_row", "2", "3 to 5"});
  refused([&] { call({{sequence, 3, 6}}); }, {"batch.first_row", "6", "0 to 5"});
  refused([&] { call({{sequence, 3, -2}}); }, {"batch.first_row", "-2"});
  refused([&] { call({{sequence, 3, 3}}); }, {"batch.tokens", "3", "2"});
  refused([&] { call({{sequence, 6}, {other, -1}}); }, {"batch.tokens", "6"});
  refused([&] { call({{sequence, std::numeric_limits<Index>::max()}, {other, 5}}); }, {"batch.tokens"});
}

TEST_F(BadCall, Reorders) {
  const SequenceId other = cache.add_sequence(), removed = cache.add_sequence();
  cache.remove_sequence(removed);
  const auto call = [&](std::vector<SequenceId> sequences, std::vector<SequenceId> parents) {
    cache.reorder(sequences, parents);
  };
  refused([&] { call({sequence, other}, {other}); }, {"parents.size", "1", "2"});
  refused(
      [&] {
        call({sequence, sequence}, {other, other});
      },
      {"sequences", std::to_string(sequence.value), "once"});
  refused([&] { call({other, other}, {other, other}); }, {"sequences", "once"});
  refused(
      [&] {
        call({other, removed}, {sequence, other});
      },
      {"sequence", std::to_string(removed.value)});
  refused([&] { call({other, sequence}, {sequence, removed}); }, {"sequence"});
}

TEST_F(BadCall, Lengths) {
  refused([&] { cache.truncate(sequence, 61); }, {"tokens", "61", "60"});
  refused([&] { cache.truncate(sequence, -1); }, {"tokens", "-1"});
  refused([&] { cache.fork(sequence, 61); }, {"tokens", "61", "60"});
  refused([&] { cache.fork(sequence, -1); }, {"tokens", "-1"});
  Inputs<> longer(options(), 61, 1);
  refused([&] { cache.attend(sequence, 0, longer.q.view(), longer.out.view()); },
          {"batch.tokens", "61", "60"});
  refused([&] { cache.dequantize(sequence, 0, longer.k.view(), longer.v.view()); },
          {"k.tokens", "61", "60"});
}

// Of 60 tokens, 4 are sinks and at least 8 stay in the tail: 48 fill three pages of 16 in each of two
// layers, which are all six that the pool may hold. Sixteen more in either layer are one page too many.
TEST_F(BadCall, FullPool) {
  constexpr std::size_t page_tokens = 16, head_dim = 32, bits = 2, kv_heads = 2, pages = 6;
  ASSERT_EQ(cache.memory_report().packed_tokens, 96);
  // A head of a page: codes of keys and of values, a zero and a scale for each channel of the keys, and
  // a scale for each value, in float16, rounded up to 64 bytes.
  constexpr std::size_t head_bytes =
      2 * page_tokens * head_dim * bits / 8 + 2 * (2 * head_dim + page_tokens);
  ASSERT_EQ(cache.memory_report().pages_used, pages * kv_heads * ((head_bytes + 63) / 64 * 64));
  for (int layer : {0, 1}) {
    refused([&] { cache.append(sequence, layer, in.k.view(0, 16), in.v.view(0, 16)); },
            {"max_pages", "6", "7"});
  }
  // Fifteen find room in the tail.
  cache.append(sequence, 0, in.k.view(0, 15), in.v.view(0, 15));
  EXPECT_EQ(cache.length(sequence, 0), 75);
  // Pages that a sequence gave up are there again.
  cache.truncate(sequence, 0);
  cache.append(sequence, 0, in.k.view(0, 60), in.v.view(0, 60));
  EXPECT_EQ(cache.length(sequence, 0), 60);
  EXPECT_EQ(cache.memory_report().packed_tokens, 48);
}

}  // namespace
}  // namespace squat::test::bad_input_test
