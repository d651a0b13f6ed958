// Pages that have left an attention window: they are given back, and nothing else changes.

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "reference/expect_error.hpp"
#include "reference/reference_attention.hpp"
#include "reference/saved.hpp"
#include "reference/score_rules.hpp"

namespace squat::test::window_test {
namespace {

using Cache = KVCache<half, 2>;

Options windowed(int window) {
  Options options{.layers = 2, .query_heads = 2, .kv_heads = 1, .head_dim = 32};
  options.residual = 16;
  options.page_tokens = 32;
  options.statistics_tokens = 60;
  options.attention_window = window;
  return options;
}

/// A sequence of `tokens` tokens, pieces of `piece` of them.
SequenceId sequence_of(Cache &cache, Index tokens, Index piece, unsigned seed = 1) {
  const SequenceId sequence = cache.add_sequence();
  for (Index first = 0; first < tokens; first += piece) {
    Inputs<> in(cache.options(), std::min(piece, tokens - first), seed++);
    fill(cache, sequence, in, 0, in.q.tokens);
  }
  return sequence;
}

TEST(Window, KeepsMemoryFlat) {
  Cache cache(windowed(300));
  const SequenceId sequence = sequence_of(cache, 1000, 100);
  const MemoryReport early = cache.memory_report();
  // Sinks, what the window holds in whole pages, and what is not packed yet.
  EXPECT_LE(early.packed_tokens, 2 * (300 + 2 * 32));
  for (Index tokens = 1000; tokens < 100'000; tokens += 100) {
    Inputs<> in(cache.options(), 100, static_cast<unsigned>(tokens));
    fill(cache, sequence, in, 0, 100);
  }
  EXPECT_EQ(cache.length(sequence), 100'000);
  const MemoryReport late = cache.memory_report();
  EXPECT_LE(late.packed_tokens, 2 * (300 + 2 * 32));
  EXPECT_EQ(late.pages, early.pages);
  EXPECT_EQ(late.exact, early.exact);
}

/// Step by step, and the same without a window's pages leaving: attention over all, masked.
TEST(Window, ChangesNothingThatIsSeen) {
  const Options options = windowed(100);
  Options all = options;
  all.attention_window = 0;
  Cache cache(options), keeping(all);
  const SequenceId sequence = sequence_of(cache, 333, 50), kept = sequence_of(keeping, 333, 50);
  for (unsigned step = 0; step < 70; ++step) {
    Inputs<> in(options, 1, 1000 + step);
    const Contents held = contents(keeping, kept);
    fill(keeping, kept, in, 0, 1);
    fill(cache, sequence, in, 0, 1);
    Tensor<float> k = held.k, v = held.v, lse(1, options.query_heads, 1),
                  out(1, options.query_heads, 32);
    cache.attend({{{sequence, 1}}}, 0,
                 AttentionTensors<float>{.q = in.q.view(), .out = out.view(), .lse = lse.view()});
    const Contents now = contents(keeping, kept);
    const RuleDistance distance =
        rule_distance(options, in.q.view(), now.k.view(), now.v.view(), out.view(), lse.view(),
                      [&](Index) { return now.k.tokens; });
    EXPECT_LT(distance.output, rounding_tolerance(2));
    EXPECT_LT(distance.lse, rounding_tolerance(2));
  }
}

TEST(Window, IsSavedForkedAndLoaded) {
  const Options options = windowed(100);
  Cache cache(options);
  const SequenceId sequence = sequence_of(cache, 500, 70);
  const Bytes bytes = saved(cache, sequence);
  const SequenceId fork = cache.fork(sequence), loaded = cache.load(bytes);
  EXPECT_EQ(saved(cache, fork), bytes);
  EXPECT_EQ(saved(cache, loaded), bytes);
  for (const SequenceId each : {sequence, fork, loaded}) {
    EXPECT_EQ(cache.length(each), 500);
    Inputs<> in(options, 150, 9);
    fill(cache, each, in, 0, 150);
  }
  EXPECT_EQ(saved(cache, fork), saved(cache, sequence));
  EXPECT_EQ(saved(cache, loaded), saved(cache, sequence));
  Options narrow = options;
  narrow.attention_window = 0;
  Cache other(narrow);
  expect_error([&] { other.load(bytes); }, {"snapshot.left"});
}

/// Drafts that are appended and taken back: attention is that of a cache from which nothing has left.
TEST(Window, LetsDraftsBeTakenBack) {
  Options options = windowed(100), all = windowed(100);
  options.rollback_tokens = 40;
  all.rollback_tokens = 1 << 20;
  Cache cache(options), keeping(all);
  const SequenceId sequence = sequence_of(cache, 300, 50), kept = sequence_of(keeping, 300, 50);
  const auto step = [](Cache &own, SequenceId id, Inputs<> &draft, Inputs<> &next) {
    const Index length = own.length(id);
    fill(own, id, draft, 0, draft.q.tokens);
    own.truncate(id, length);
    fill(own, id, next, 0, next.q.tokens);
    return next.out.elements;
  };
  for (unsigned seed = 0; seed < 60; ++seed) {
    Inputs<> draft(options, 40, 100 + seed), next(options, 9, 200 + seed);
    const std::vector<float> out = step(cache, sequence, draft, next),
                             expected = step(keeping, kept, draft, next);
    for (std::size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected[i], 1e-5) << seed;
  }
  EXPECT_LE(cache.memory_report().packed_tokens, 2 * (100 + 40 + 2 * 32));
  EXPECT_GT(keeping.memory_report().packed_tokens, 2 * 700);
}

TEST(Window, DoesNotGiveBackWhatHasLeft) {
  Cache cache(windowed(100));
  const SequenceId sequence = sequence_of(cache, 500, 70);
  const Bytes before = saved(cache, sequence);
  expect_error([&] { cache.truncate(sequence, 300); }, {"have left the attention window"});
  expect_error([&] { cache.fork(sequence, 300); }, {"have left the attention window"});
  expect_error([&] { cache.shift(sequence, 10, 20, 0); }, {"have left the attention window"});
  EXPECT_EQ(saved(cache, sequence), before);
  cache.truncate(sequence, 498);
  EXPECT_EQ(cache.length(sequence), 498);
  cache.truncate(sequence, 3);  // the sinks are there
  EXPECT_EQ(cache.length(sequence), 3);
  EXPECT_EQ(cache.memory_report().packed_tokens, 0);
}

}  // namespace
}  // namespace squat::test::window_test
