// Out of memory while a snapshot is loaded: the cache is as it was, and the next load is whole.

#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

#include "counting_allocator.hpp"
#include "reference/reference_attention.hpp"

namespace squat::test::snapshot_test {
namespace {

using Cache = KVCache<half, 2>;

Options small(Coding coding, Allocation allocation, bool of_sequences) {
  Options options{.layers = 2, .query_heads = 2, .kv_heads = 1, .head_dim = 32, .coding = coding};
  options.allocation = allocation;
  options.residual = 16;
  options.page_tokens = 16;
  options.rotary = {{.inverse_frequencies = {1, .1f, .01f}}};
  options.statistics_tokens = 80;
  options.learning = of_sequences ? LearningMode::per_sequence : LearningMode::first_tokens;
  return options;
}

void expect_whole_or_nothing(const Options &options) {
  Inputs<> in(options, 150, 1);
  Cache cache(options);
  const SequenceId sequence = cache.add_sequence();
  for (int layer : {0, 1}) {
    cache.attend(sequence, layer, in.q.view(), in.k.view(), in.v.view(), in.out.view());
  }
  std::vector<std::byte> bytes;
  cache.save(sequence, bytes);
  std::size_t failed = 0;
  for (std::size_t n = 1;; ++n) {
    SCOPED_TRACE(n);
    Cache other(options);
    const MemoryReport before = other.memory_report();
    SequenceId loaded;
    fails_at = n;
    bool thrown = false;
    try {
      loaded = other.load(bytes);
    } catch (const Error &) {
      thrown = true;
    }
    const bool reached = fails_at == 0;
    fails_at = 0;
    if (thrown) {
      ++failed;
      const MemoryReport after = other.memory_report();
      ASSERT_EQ(after.total(), before.total());
      ASSERT_EQ(after.exact_tokens + after.packed_tokens, 0);
      loaded = other.load(bytes);
    }
    for (int layer : {0, 1}) ASSERT_EQ(contents(other, loaded, layer), contents(cache, sequence, layer));
    if (!reached) break;
  }
  EXPECT_GT(failed, 10u);
}

TEST(OutOfMemoryLoading, LosesNothing) {
  for (const Coding coding : {Coding::plain, Coding::orthogonal, Coding::subspace}) {
    for (const bool of_sequences : {false, true})
      expect_whole_or_nothing(small(coding, Allocation::head, of_sequences));
  }
  expect_whole_or_nothing(small(Coding::subspace, Allocation::layer, false));
  expect_whole_or_nothing(small(Coding::subspace, Allocation::model, false));
}

}  // namespace
}  // namespace squat::test::snapshot_test
