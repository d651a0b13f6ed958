// Caches in threads of their own, and a cache over a pool of threads, give what they give alone.

#include <gtest/gtest.h>

#include <array>
#include <thread>
#include <vector>

#include "reference/saved.hpp"
#include "reference/small_world.hpp"
#include "squat/parallel/thread_pool.hpp"

namespace squat::test::caches_test {
namespace {

struct Outcome {
  std::vector<float> outputs, decoded;
  Bytes snapshot;
  bool operator==(const Outcome &) const = default;
};

/// Two prompts in a batch, a fork, a snapshot that is loaded again, steps.
Outcome serve(const Options &options) {
  SmallWorld world(options);
  const std::array batch = {SequenceTokens{world.sequences[0], 90},
                            SequenceTokens{world.sequences[1], 60}};
  for (const int layer : {0, 1}) {
    world.cache.attend(batch, layer, world.in.q.view(0, 150), world.in.k.view(0, 150),
                       world.in.v.view(0, 150), world.in.out.view(0, 150));
  }
  const SequenceId fork = world.cache.fork(world.sequences[0], 70);
  world.cache.remove_sequence(world.sequences[1]);
  world.sequences[1] = world.cache.load(saved(world.cache, fork));
  Outcome outcome{world.outputs(), world.decode(), saved(world.cache, fork)};
  world.cache.reorder(world.sequences, std::array{fork, fork});
  return outcome;
}

Options options_of(Coding coding) {
  Options options = small_options(coding);
  options.query_heads = 8;
  options.kv_heads = 4;
  options.statistics_tokens = 60;
  return options;
}

class Threads : public testing::TestWithParam<Coding> {};

TEST_P(Threads, OfTwoCachesKnowNothingOfEachOther) {
  const Options options = options_of(GetParam());
  const Outcome alone = serve(options);
  std::array<Outcome, 2> outcomes;
  std::vector<std::thread> threads;
  for (Outcome &outcome : outcomes) threads.emplace_back([&] { outcome = serve(options); });
  for (std::thread &thread : threads) thread.join();
  for (const Outcome &outcome : outcomes) EXPECT_EQ(outcome, alone);
}

TEST_P(Threads, OfAPoolGiveWhatOneGives) {
  Options options = options_of(GetParam());
  const Outcome alone = serve(options);
  ThreadPool pool(4);
  options.parallel = pool.parallel();
  EXPECT_EQ(serve(options), alone);
}

TEST_P(Threads, OfTwoPoolsServeTwoCaches) {
  const Options options = options_of(GetParam());
  const Outcome alone = serve(options);
  std::array<Outcome, 2> outcomes;
  std::vector<std::thread> threads;
  for (Outcome &outcome : outcomes) {
    threads.emplace_back([&] {
      ThreadPool pool(3);
      Options own = options;
      own.parallel = pool.parallel();
      outcome = serve(own);
    });
  }
  for (std::thread &thread : threads) thread.join();
  for (const Outcome &outcome : outcomes) EXPECT_EQ(outcome, alone);
}

INSTANTIATE_TEST_SUITE_P(Codings, Threads,
                         testing::Values(Coding::plain, Coding::orthogonal, Coding::subspace));

}  // namespace
}  // namespace squat::test::caches_test
