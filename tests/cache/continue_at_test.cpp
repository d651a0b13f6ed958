// A cache that has some of a sequence's tokens: pack() packs them where no others follow here, and
// continue_at() codes them as where they stand.

#include <gtest/gtest.h>

#include <vector>

#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"
#include "reference/saved.hpp"

namespace squat::test::continue_at_test {
namespace {

Options small() {
  Options options{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 32};
  options.sinks = 3;
  options.residual = 16;
  options.page_tokens = 16;
  options.statistics_tokens = 64;
  options.tile_tokens = 32;
  options.rotary = {rotary_table(1e3, 32)};
  return options;
}
constexpr Index first_run = 67, next_run = 32;

struct World {
  World() : cache(small()), sequence(cache.add_sequence()), in(small(), 200, 1) {
    embed(in, small().rotary.front());
  }

  KVCache<half, 2> cache;
  SequenceId sequence;
  Inputs<> in;
};

/// The rows from `first` on.
std::vector<float> rows_from(const Tensor<float> &tensor, Index first, Index count) {
  const auto begin = tensor.elements.begin() + first * tensor.heads * tensor.head_dim;
  return {begin, begin + count * tensor.heads * tensor.head_dim};
}

TEST(Pack, PacksWhatWouldBePackedLater) {
  World world, later;
  fill(world.cache, world.sequence, world.in, 0, first_run + 5);
  fill(later.cache, later.sequence, later.in, 0, first_run + 37);
  EXPECT_EQ(world.cache.tail(world.sequence, 1), 21);
  const std::size_t pages = world.cache.memory_report().pages_used;
  world.cache.pack(world.sequence, 1);
  EXPECT_EQ(world.cache.tail(world.sequence, 0), 21) << "another layer";
  EXPECT_EQ(world.cache.tail(world.sequence, 1), 5) << "no whole page";
  EXPECT_EQ(world.cache.memory_report().pages_used, pages + world.cache.page_bytes(1));
  EXPECT_EQ(world.cache.length(world.sequence, 1), first_run + 5);
  const Contents packed = contents(world.cache, world.sequence, 1),
                 expected = contents(later.cache, later.sequence, 1);
  EXPECT_EQ(rows_from(packed.k, 0, first_run), rows_from(expected.k, 0, first_run));
  EXPECT_EQ(rows_from(packed.v, 0, first_run), rows_from(expected.v, 0, first_run));
  world.cache.pack(world.sequence, 1);
  EXPECT_EQ(contents(world.cache, world.sequence, 1), packed) << "nothing is left";
}

TEST(Pack, LeavesWhatIsStillLearntFrom) {
  World world;
  EXPECT_FALSE(world.cache.learnt(0));
  fill(world.cache, world.sequence, world.in, 0, 60);
  world.cache.pack(world.sequence, 0);
  EXPECT_EQ(world.cache.tail(world.sequence, 0), 57);
  fill(world.cache, world.sequence, world.in, 60, 7);
  EXPECT_TRUE(world.cache.learnt(0));
}

TEST(Pack, ThrowsWhereThereAreNoPages) {
  Options options = small();
  options.max_pages = 6;
  KVCache<half, 2> cache(options);
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(options, 100, 1);
  fill(cache, sequence, in, 0, first_run);
  EXPECT_EQ(cache.free_pages(), 0u);
  const Bytes before = saved(cache, sequence);
  EXPECT_THROW(cache.pack(sequence, 0), Error);
  EXPECT_EQ(saved(cache, sequence), before);
}

/// A cache of the second run alone, which is coded as in the cache of all tokens.
TEST(ContinueAt, CodesTokensAsWhereTheyStand) {
  World all, part;
  fill(all.cache, all.sequence, all.in, 0, first_run);
  Bytes codings;
  all.cache.save_codings(codings);
  part.cache.load_codings(codings);
  fill(all.cache, all.sequence, all.in, first_run, 2 * next_run);
  const auto expect_second_run = [&](SequenceId sequence) {
    for (int layer = 0; layer < 2; ++layer) part.cache.continue_at(sequence, layer, first_run);
    fill(part.cache, sequence, part.in, first_run, next_run);
    for (int layer = 0; layer < 2; ++layer) {
      part.cache.pack(sequence, layer);
      EXPECT_EQ(part.cache.tail(sequence, layer), 0) << "no sinks, whole pages";
      const Contents found = contents(part.cache, sequence, layer),
                     expected = contents(all.cache, all.sequence, layer);
      EXPECT_EQ(found.k.elements, rows_from(expected.k, first_run, next_run));
      EXPECT_EQ(found.v.elements, rows_from(expected.v, first_run, next_run));
    }
  };
  expect_second_run(part.sequence);
  const SequenceId fork = part.cache.fork(part.sequence, 0);
  part.cache.truncate(part.sequence, 0);
  expect_second_run(part.sequence);
  expect_second_run(fork);
  // Behind a gap, a run begins a tile of its own.
  const Index next = first_run + next_run;
  fill(all.cache, all.sequence, all.in, next + next_run, 2 * next_run);
  for (int layer = 0; layer < 2; ++layer) part.cache.continue_at(fork, layer, next + next_run);
  fill(part.cache, fork, part.in, next + next_run, next_run);
  part.cache.pack(fork, 1);
  EXPECT_EQ(rows_from(contents(part.cache, fork, 1).k, next_run, next_run),
            rows_from(contents(all.cache, all.sequence, 1).k, next + next_run, next_run));
}

TEST(ContinueAt, AtTheBeginningHasSinks) {
  World world, other;
  for (int layer = 0; layer < 2; ++layer) {
    world.cache.continue_at(world.sequence, layer, 40);
    world.cache.continue_at(world.sequence, layer, 0);
  }
  fill(world.cache, world.sequence, world.in, 0, 100);
  fill(other.cache, other.sequence, other.in, 0, 100);
  EXPECT_EQ(saved(world.cache, world.sequence), saved(other.cache, other.sequence));
}

TEST(ContinueAt, RefusesWhatIsNotThere) {
  World world;
  EXPECT_THROW(world.cache.continue_at(world.sequence, 2, 0), Error);
  EXPECT_THROW(world.cache.continue_at(world.sequence, 0, -1), Error);
  EXPECT_THROW(world.cache.continue_at(world.sequence, 0, (Index{1} << 32) + 1), Error);
  EXPECT_THROW(world.cache.continue_at({77}, 0, 1), Error);
  EXPECT_THROW(world.cache.pack(world.sequence, -1), Error);
  EXPECT_THROW(world.cache.tail(world.sequence, 2), Error);
  EXPECT_THROW(world.cache.learnt(2), Error);
  Options options = small();
  options.learning = LearningMode::per_sequence;
  EXPECT_THROW((KVCache<half, 2>(options).learnt(0)), Error);
}

}  // namespace
}  // namespace squat::test::continue_at_test
