// Sequences take each other's tokens in one call: as beam search does, against recomputing every beam.

#include <gtest/gtest.h>

#include <array>
#include <random>
#include <string>
#include <vector>

#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"

namespace squat::test::reorder_test {
namespace {

Options small(Coding coding = Coding::subspace) {
  return {.layers = 2,
          .query_heads = 4,
          .kv_heads = 2,
          .head_dim = 32,
          .coding = coding,
          .sinks = 3,
          .residual = 10,
          .page_tokens = 16,
          .rotary = {rotary_table(1e4, 32)},
          .statistics_tokens = 40};
}

/// Sequences of a cache, and the rows of `in` that each was fed: what it is to hold.
template <int Bits>
struct Beams {
  Beams(const Options &options, Index prompt, std::size_t width)
      : cache(options), in(options, prompt + 200, 1) {
    for (std::size_t i = 0; i < width; ++i) {
      sequences.push_back(cache.add_sequence());
      fed.emplace_back();
      for (Index row = 0; row < prompt; ++row) fed[i].push_back(row);
      feed(sequences[i], 0, prompt);
    }
  }

  void feed(SequenceId sequence, Index first, Index count) { fill(cache, sequence, in, first, count); }
  void feed(std::size_t beam, Index row) {
    feed(sequences[beam], row, 1);
    fed[beam].push_back(row);
  }

  void reorder(const std::vector<std::size_t> &parents) {
    std::vector<SequenceId> of;
    const std::vector<std::vector<Index>> before = fed;
    for (std::size_t i = 0; i < parents.size(); ++i) {
      of.push_back(sequences[parents[i]]);
      fed[i] = before[parents[i]];
    }
    cache.reorder(std::span(sequences).first(parents.size()), of);
  }

  /// Feeds a new sequence what each was fed, and expects the same rows and the same attention.
  void expect_recomputed() {
    const Index prompt = in.q.tokens - 200;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      SCOPED_TRACE(i);
      const SequenceId again = cache.add_sequence();
      feed(again, 0, prompt);
      for (std::size_t at = static_cast<std::size_t>(prompt); at < fed[i].size(); ++at)
        feed(again, fed[i][at], 1);
      ASSERT_EQ(cache.length(sequences[i]), static_cast<Index>(fed[i].size()));
      for (int layer : {0, 1}) {
        ASSERT_EQ(contents(cache, sequences[i], layer), contents(cache, again, layer));
        ASSERT_EQ(output(sequences[i], layer), output(again, layer));
      }
      cache.remove_sequence(again);
    }
  }

  std::vector<float> output(SequenceId sequence, int layer) {
    cache.attend(sequence, layer, in.q.view(0, 1), in.out.view(0, 1));
    const float *row = in.out.view().row(0, 0);
    return {row, row + in.out.heads * in.out.head_dim};
  }

  KVCache<half, Bits> cache;
  Inputs<> in;
  std::vector<SequenceId> sequences;
  std::vector<std::vector<Index>> fed;
};

template <int Bits>
void search(const Options &options) {
  constexpr std::size_t width = 4;
  constexpr Index prompt = 70;
  Beams<Bits> beams(options, prompt, width);
  std::mt19937 random(3);
  for (Index step = 0; step < 48; ++step) {
    for (std::size_t i = 0; i < width; ++i) beams.feed(i, prompt + 4 * step + static_cast<Index>(i));
    std::vector<std::size_t> parents(width);
    for (std::size_t &parent : parents) parent = random() % width;
    beams.reorder(parents);
    if (step % 12 == 11) beams.expect_recomputed();
  }
}

TEST(Reorder, IsRecomputingEveryBeam) {
  for (const TailCoding tail : {TailCoding::exact, TailCoding::int8}) {
    Options options = small();
    options.tail = tail;
    search<2>(options);
  }
  search<4>(small(Coding::orthogonal));
  search<16>(small(Coding::plain));
}

/// Every way in which four sequences can follow each other.
TEST(Reorder, TakesAnyParents) {
  Options options = small(Coding::plain);
  for (std::size_t code = 0; code < 256; ++code) {
    SCOPED_TRACE(code);
    Beams<2> beams(options, 40, 4);
    for (std::size_t i = 0; i < 4; ++i) beams.feed(i, 40 + static_cast<Index>(i));
    beams.reorder({code % 4, code / 4 % 4, code / 16 % 4, code / 64});
    beams.expect_recomputed();
  }
}

TEST(Reorder, KeepsParentsThatAreNotNamed) {
  Beams<2> beams(small(), 70, 5);
  for (std::size_t i = 0; i < 5; ++i) beams.feed(i, 70 + static_cast<Index>(i));
  beams.reorder({4, 4, 0});  // 3 and 4 stay
  beams.expect_recomputed();
  beams.reorder({1});
  beams.expect_recomputed();
  beams.reorder({});
  beams.expect_recomputed();
}

TEST(Reorder, TakesTokensOfAnyLengthAndNone) {
  KVCache<half, 2> cache(small());
  Inputs<> in(small(), 150, 1);
  const SequenceId full = cache.add_sequence(), empty = cache.add_sequence();
  for (int layer : {0, 1}) cache.append(full, layer, in.q.view(), in.k.view(), in.v.view());
  cache.append(full, 0, in.k.view(0, 5), in.v.view(0, 5));  // a layer ahead of the other
  const Contents ahead = contents(cache, full, 0), behind = contents(cache, full, 1);
  const std::array both = {full, empty}, swapped = {empty, full};
  cache.reorder(both, swapped);
  EXPECT_EQ(cache.length(full), 0);
  EXPECT_EQ(contents(cache, empty, 0), ahead);
  EXPECT_EQ(contents(cache, empty, 1), behind);
  cache.reorder(both, swapped);
  EXPECT_EQ(cache.length(empty), 0);
  EXPECT_EQ(contents(cache, full, 1), behind);
}

TEST(Reorder, MovesWhatNobodyElseWants) {
  Beams<2> beams(small(), 150, 4);
  const MemoryReport before = beams.cache.memory_report();
  EXPECT_EQ(before.shared_pages, 0u);
  beams.reorder({1, 2, 3, 0});
  const MemoryReport rotated = beams.cache.memory_report();
  EXPECT_EQ(rotated.shared_pages, 0u);
  EXPECT_EQ(rotated.pages_used, before.pages_used);
  beams.reorder({2, 2, 2, 2});
  const MemoryReport same = beams.cache.memory_report();
  EXPECT_EQ(4 * same.pages_used, before.pages_used);
  EXPECT_EQ(same.saved_by_sharing, 3 * same.pages_used);
  for (const SequenceId sequence : beams.sequences) beams.cache.remove_sequence(sequence);
  EXPECT_EQ(beams.cache.memory_report().pages_used, 0u);
  EXPECT_EQ(beams.cache.memory_report().exact, 0u);
}

TEST(Reorder, TakesCodingsAlong) {
  Options options = small();
  options.learning = LearningMode::per_sequence;
  KVCache<half, 2> cache(options);
  const std::size_t none = cache.memory_report().bases;
  std::vector<SequenceId> sequences;
  std::vector<Contents> held;
  for (unsigned i = 0; i < 3; ++i) {
    Inputs<> in(options, 150, 10 * i);
    sequences.push_back(cache.add_sequence());
    for (int layer : {0, 1}) cache.append(sequences[i], layer, in.q.view(), in.k.view(), in.v.view());
    held.push_back(contents(cache, sequences[i], 1));
  }
  const std::size_t three = cache.memory_report().bases;
  cache.reorder(sequences, std::array{sequences[1], sequences[2], sequences[0]});
  EXPECT_EQ(cache.memory_report().bases, three);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(contents(cache, sequences[i], 1), held[(i + 1) % 3]);
  cache.reorder(sequences, std::array{sequences[2], sequences[2], sequences[2]});
  EXPECT_EQ(3 * (cache.memory_report().bases - none), three - none);
  for (const SequenceId sequence : sequences) {
    EXPECT_EQ(contents(cache, sequence, 1), held[0]);
    cache.remove_sequence(sequence);
  }
  EXPECT_EQ(cache.memory_report().bases, none);
}

}  // namespace
}  // namespace squat::test::reorder_test
