// A cache says beforehand how many pages tokens will take.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <random>
#include <span>
#include <vector>

#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"

namespace squat::test::pages_due_test {
namespace {

Options small(Coding coding) {
  return {.layers = 2,
          .query_heads = 2,
          .kv_heads = 1,
          .head_dim = 32,
          .coding = coding,
          .sinks = 3,
          .residual = 10,
          .page_tokens = 16,
          .rotary = {rotary_table(1e4, 32)},
          .statistics_tokens = 60};
}

/// Hands a batch to every layer, tokens of `in` from its first row on.
template <class Cache>
void fill(Cache &cache, std::span<const SequenceTokens> batch, Inputs<> &in) {
  Index rows = 0;
  for (const SequenceTokens &entry : batch) rows += entry.tokens;
  for (int layer = 0; layer < cache.options().layers; ++layer) {
    cache.attend(batch, layer, in.q.view(0, rows), in.k.view(0, rows), in.v.view(0, rows),
                 in.out.view(0, rows));
  }
}

template <int Bits>
void expect_pages_as_said(const Options &options) {
  KVCache<half, Bits> cache(options);
  std::vector<SequenceId> sequences = {cache.add_sequence(), cache.add_sequence()};
  std::mt19937 random(3);
  std::size_t all = 0;
  for (int call = 0; call < 60; ++call) {
    if (call == 30) sequences.push_back(cache.fork(sequences[0], cache.length(sequences[0]) / 2));
    std::vector<SequenceTokens> batch;
    for (const SequenceId sequence : sequences) {
      const bool decode = random() % 2 == 0;
      batch.push_back({sequence, static_cast<Index>(random() % (decode ? 2 : 40))});
    }
    Inputs<> in(options, 120, static_cast<unsigned>(random()));
    const std::size_t due = cache.pages_due(batch), free = cache.free_pages();
    fill(cache, batch, in);
    ASSERT_EQ(free - cache.free_pages(), due) << "call " << call;
    all += due;
  }
  EXPECT_GT(all, 100u);
}

TEST(PagesDue, AreThoseThatAnAppendTakes) {
  for (const Coding coding : {Coding::plain, Coding::orthogonal, Coding::subspace}) {
    SCOPED_TRACE(static_cast<int>(coding));
    expect_pages_as_said<2>(small(coding));
  }
  expect_pages_as_said<16>(small(Coding::plain));
  Options own = small(Coding::subspace);
  own.learning = LearningMode::per_sequence;
  expect_pages_as_said<2>(own);
}

TEST(PagesDue, OfTokensThatDoNotFitAreMoreThanAreFree) {
  Options options = small(Coding::plain);
  options.max_pages = 20;
  KVCache<half, 2> cache(options);
  const std::array batch{SequenceTokens{cache.add_sequence(), 25}};
  Inputs<> in(options, 25, 1);
  int calls = 0;
  for (; cache.pages_due(batch) <= cache.free_pages(); ++calls) ASSERT_NO_THROW(fill(cache, batch, in));
  EXPECT_EQ(calls, (3 + 10 + 11 * 16 - 1) / 25);  // the tokens before an eleventh page of each layer
  EXPECT_THROW(fill(cache, batch, in), Error);
}

TEST(PagesDue, AreTheMostWhereTokensAreNoText) {
  const Options options = small(Coding::subspace);
  KVCache<half, 2> cache(options);
  const std::array batch{SequenceTokens{cache.add_sequence(), 20}};
  Inputs<> in(options, 20, 1);
  for (auto *x : {&in.q, &in.k, &in.v}) std::fill(x->elements.begin(), x->elements.end(), 0.0f);
  for (int call = 0; call < 10; ++call) {
    const std::size_t due = cache.pages_due(batch), free = cache.free_pages();
    fill(cache, batch, in);
    ASSERT_LE(free - cache.free_pages(), due) << "call " << call;
  }
  EXPECT_GT(cache.memory_report().packed_tokens, 0);
}

TEST(PagesDue, AreOfSequencesThatAreThere) {
  KVCache<half, 2> cache(small(Coding::plain));
  const SequenceId gone = cache.add_sequence();
  cache.remove_sequence(gone);
  const std::array batch{SequenceTokens{gone, 1}};
  EXPECT_THROW(cache.pages_due(batch), Error);
  EXPECT_EQ(cache.pages_due({}), 0u);
}

}  // namespace
}  // namespace squat::test::pages_due_test
