// Adding, removing and truncating sequences, and the memory they take.

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "reference/reference_attention.hpp"

namespace squat::test::sequences_test {
namespace {

Options small(Coding coding = Coding::plain) {
  return {.layers = 2,
          .query_heads = 4,
          .kv_heads = 2,
          .head_dim = 32,
          .coding = coding,
          .sinks = 3,
          .residual = 10,
          .page_tokens = 16,
          .statistics_tokens = 40};
}

TEST(Truncate, KeepsWhatStaysToAnyPoint) {
  for (Index keep = 0; keep <= 120; ++keep) {
    KVCache<float, 4> cache(small());
    const SequenceId sequence = cache.add_sequence();
    Inputs<> in(small(), 160, 4);
    fill(cache, sequence, in, 0, 120);
    const Contents before = contents(cache, sequence, 1);
    cache.truncate(sequence, keep);
    ASSERT_EQ(cache.length(sequence), keep);
    const Contents after = contents(cache, sequence, 1);
    ASSERT_TRUE(std::equal(after.k.elements.begin(), after.k.elements.end(), before.k.elements.begin()));
    ASSERT_TRUE(std::equal(after.v.elements.begin(), after.v.elements.end(), before.v.elements.begin()));
    // and goes on from there
    fill(cache, sequence, in, 120, 40);
    const Contents later = contents(cache, sequence, 1);
    ASSERT_EQ(cache.length(sequence), keep + 40);
    cache.attend(sequence, 1, in.q.view(0, 2), in.out.view(0, 2));
    ASSERT_LT(attention_distance<float>(in.q.view(0, 2), later.k.view(), later.v.view(),
                                        in.out.view(0, 2), keep + 38),
              rounding_tolerance(2));
  }
}

TEST(Truncate, AgainAndAgainAtRandom) {
  KVCache<half, 2> cache(small(Coding::orthogonal));
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(small(), 64, 8);
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const Index piece = 1 + static_cast<Index>(random() % 60);
    fill(cache, sequence, in, 0, piece);
    const Index length = cache.length(sequence);
    if (round % 3 == 0) cache.truncate(sequence, static_cast<Index>(random()) % (length + 1));
    const Index now = cache.length(sequence);
    if (now == 0) continue;
    const Contents held = contents(cache, sequence, 0);
    cache.attend(sequence, 0, in.q.view(0, 1), in.out.view(0, 1));
    ASSERT_LT(attention_distance<float>(in.q.view(0, 1), held.k.view(), held.v.view(), in.out.view(0, 1),
                                        now - 1),
              rounding_tolerance(2));
  }
}

TEST(Sequences, RemovedPagesServeOthers) {
  Options options = small();
  options.max_pages = 12;  // 6 a layer
  KVCache<float, 2> cache(options);
  Inputs<> in(options, 96 + 3 + 10, 2);
  for (int round = 0; round < 5; ++round) {
    const SequenceId sequence = cache.add_sequence();
    fill(cache, sequence, in, 0, 96 + 3 + 10);
    EXPECT_EQ(cache.memory_report().pages_used, cache.memory_report().pages);
    cache.remove_sequence(sequence);
    EXPECT_EQ(cache.memory_report().pages_used, 0u);
    EXPECT_EQ(cache.memory_report().exact, 0u);
    EXPECT_THROW(cache.length(sequence), Error);
  }
}

TEST(Sequences, KeepTheirTokensWhenOthersGo) {
  KVCache<float, 2> cache(small());
  Inputs<> one(small(), 100, 2), other(small(), 100, 5);
  const SequenceId a = cache.add_sequence(), b = cache.add_sequence();
  fill(cache, a, one, 0, 100);
  fill(cache, b, other, 0, 100);
  const Contents held = contents(cache, b);
  cache.remove_sequence(a);
  const SequenceId c = cache.add_sequence();
  fill(cache, c, one, 0, 100);
  EXPECT_EQ(contents(cache, b), held);
}

TEST(MemoryReport, CountsEverythingStored) {
  Options options = small(Coding::plain);
  KVCache<half, 2> cache(options);
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(options, 3 + 10 + 16 * 5, 1);
  fill(cache, sequence, in, 0, 3 + 10 + 16 * 5);
  const MemoryReport report = cache.memory_report();
  // keys: 2 bits + 32 bits of zero and scale for 16 tokens; values: 2 bits + 32 bits for 32 channels
  EXPECT_DOUBLE_EQ(report.packed_bits_per_element, (2 + 32. / 16 + 2 + 32. / 32) / 2);
  EXPECT_EQ(report.packed_tokens, 2 * 16 * 5);
  EXPECT_EQ(report.exact_tokens, 2 * (3 + 10));
  const std::size_t row = 2 * 2 * 32 * sizeof(half);        // keys and values of a token and layer
  EXPECT_EQ(report.exact, 2 * (3 + 10) * row);              // sinks and window
  EXPECT_EQ(report.pages_used, 2 * 5 * 16 * row * 7 / 32);  // 3.5 bits instead of 16
  EXPECT_EQ(report.bases, 0u);
  EXPECT_NEAR(report.total_bits_per_element,
              8. * static_cast<double>(report.pages_used + report.exact) / (93. * 2 * 2 * 2 * 32), 1e-9);
}

TEST(MemoryReport, AShortSequenceTakesHardlyMoreThanIn16Bits) {
  KVCache<half, 2> cache(small(Coding::plain));
  const SequenceId sequence = cache.add_sequence();
  const std::size_t row = 2 * 2 * 32 * sizeof(half);  // keys and values of a token and layer
  Inputs<> in(small(), 64, 1);
  for (Index token = 0; token < 64; ++token) {
    fill(cache, sequence, in, token, 1);
    const MemoryReport report = cache.memory_report();
    const auto tokens = static_cast<std::size_t>(token + 1);
    EXPECT_LE(report.exact + report.pages_used, 5 * 2 * tokens * row / 4) << tokens << " tokens";
  }
}

TEST(Sequences, AHandleOfARemovedSequenceIsNoOthers) {
  KVCache<half, 2> cache(small(Coding::plain));
  const SequenceId first = cache.add_sequence();
  cache.remove_sequence(first);
  const SequenceId second = cache.add_sequence();
  EXPECT_NE(first, second);
  EXPECT_EQ(cache.length(second), 0);
  EXPECT_THROW(cache.length(first), Error);
  EXPECT_THROW(cache.remove_sequence(first), Error);
  EXPECT_THROW(cache.length(SequenceId{}), Error);
}

TEST(MemoryReport, StatisticsGoWhenTheBasisComes) {
  KVCache<half, 2> cache(small(Coding::orthogonal));
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(small(), 80, 1);
  fill(cache, sequence, in, 0, 30);
  EXPECT_GT(cache.memory_report().statistics, 0u);
  EXPECT_EQ(cache.memory_report().bases, 0u);
  EXPECT_EQ(cache.memory_report().packed_tokens, 0);
  fill(cache, sequence, in, 30, 50);
  EXPECT_EQ(cache.memory_report().statistics, 0u);
  // Order and feedback of the keys' channels, and the mean value.
  EXPECT_EQ(cache.memory_report().bases, 4 * (32 * sizeof(int) + (32 * 32 + 32) * sizeof(float)));
  EXPECT_GT(cache.memory_report().packed_tokens, 0);
}

TEST(MemoryReport, BasesAreOneMatrixAHead) {
  KVCache<half, 2> cache(small(Coding::subspace));
  Inputs<> in(small(), 80, 1);
  fill(cache, cache.add_sequence(), in, 0, 80);
  // A byte an entry; a scale and a width of each channel, the metric and the mean value; what a basis is
  // beside these.
  const std::size_t head = 32 * 32 + 4 * 32 * sizeof(float);
  const std::size_t bases = cache.memory_report().bases;
  EXPECT_GT(cache.memory_report().packed_tokens, 0);
  EXPECT_GE(bases, 4 * head);
  EXPECT_LE(bases, 4 * (head + 320));
}

}  // namespace
}  // namespace squat::test::sequences_test
