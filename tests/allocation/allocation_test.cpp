// What the cache allocates: nothing in attend after warm-up, and otherwise what memory_report says. From
// headers alone, so that Eigen's allocations are seen too.

#include <gtest/gtest.h>

#include <cstddef>

#include "counting_allocator.hpp"
#include "reference/reference_attention.hpp"

namespace squat::test::allocation_test {
namespace {

class Allocation : public testing::TestWithParam<Coding> {
 protected:
  Options options() const {
    return {.layers = 2,
            .query_heads = 8,
            .kv_heads = 2,
            .head_dim = 64,
            .coding = GetParam(),
            .residual = 32,
            .page_tokens = 32,
            .rotary = {{.inverse_frequencies = {1, .1f, .01f}}},
            .statistics_tokens = 100};
  }
};

TEST_P(Allocation, NoneInAttendAfterWarmUp) {
  KVCache<half, 2> cache(options());
  const SequenceId sequence = cache.add_sequence();
  Inputs<> prompt(options(), 300, 1), token(options(), 1, 2), few(options(), 3, 3);
  cache.attend(sequence, 0, prompt.q.view(), prompt.k.view(), prompt.v.view(), prompt.out.view());
  const auto decode = [&](Inputs<> &in) {
    cache.attend(sequence, 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
  };
  decode(few);
  for (int i = 0; i < 40; ++i) decode(token);  // past the next page
  const std::size_t before = allocations;
  Eigen::internal::set_is_malloc_allowed(false);
  for (int i = 0; i < 100; ++i) decode(i % 9 == 0 ? few : token);
  Eigen::internal::set_is_malloc_allowed(true);
  EXPECT_EQ(allocations, before);
}

/// But for the room of exact rows, which grows by a quarter: statistics are added to where they are, and
/// no copy is made to go back to.
TEST_P(Allocation, NoneInStepsThatAreLearntFrom) {
  Options learning = options();
  learning.statistics_tokens = 1000;
  KVCache<half, 2> cache(learning);
  const SequenceId sequence = cache.add_sequence();
  Inputs<> token(learning, 1, 2);
  const auto decode = [&] {
    cache.attend(sequence, 0, token.q.view(), token.k.view(), token.v.view(), token.out.view());
  };
  for (int i = 0; i < 140; ++i) decode();
  const std::size_t before = allocations;
  Eigen::internal::set_is_malloc_allowed(false);
  for (int i = 0; i < 50; ++i) decode();
  Eigen::internal::set_is_malloc_allowed(true);
  EXPECT_LE(allocations, before + 4);
}

TEST_P(Allocation, MemoryReportIsWhatIsHeld) {
  KVCache<half, 4, 2> cache(options());
  const SequenceId first = cache.add_sequence(), second = cache.add_sequence();
  Inputs<> in(options(), 2000, 1);
  const std::size_t inputs = bytes_held;
  for (SequenceId sequence : {first, second}) {
    for (int layer : {0, 1}) cache.append(sequence, layer, in.q.view(), in.k.view(), in.v.view());
  }
  cache.attend(first, 0, in.q.view(0, 1), in.k.view(0, 1), in.v.view(0, 1), in.out.view(0, 1));
  const MemoryReport report = cache.memory_report();
  // The page tables and the options are bookkeeping; what was learnt is in part Eigen's memory, not
  // operator new's.
  const std::size_t held = bytes_held - inputs;
  EXPECT_GE(held, report.total() - report.bases - report.statistics);
  EXPECT_LE(held, (report.total() - report.statistics) * 102 / 100 + 20000);
}

INSTANTIATE_TEST_SUITE_P(Codings, Allocation,
                         testing::Values(Coding::plain, Coding::orthogonal, Coding::subspace));

}  // namespace
}  // namespace squat::test::allocation_test
