// Threads that throw: whichever call of Options::parallel does, with none, some or all of its tasks
// done, the call of the cache throws the same, the cache is as it was, and the same call then gives what
// it would have given.

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <stdexcept>

#include "reference/failing_allocations.hpp"
#include "reference/small_world.hpp"
#include "squat/parallel/openmp.hpp"
#include "squat/parallel/thread_pool.hpp"

namespace squat::test::throwing_test {
namespace {

std::size_t fails_at = 0;  // the call of parallel, 1 the next; 0: none

/// done: how many tasks in ten end before it throws.
Parallel throwing(int done) {
  return [done](int count, Task task) {
    const bool throws = fails_at > 0 && --fails_at == 0;
    const int last = throws ? count * done / 10 : count;
    for (int index = 0; index < last; ++index) task(index);
    if (throws) throw Error("squat: no threads");
  };
}

template <class Prepare, class Call>
void expect_nothing_lost(Options options, Prepare &&prepare, Call &&call) {
  options.query_heads = 4;
  options.kv_heads = 2;  // so that there are tasks
  for (const int done : {0, 5, 10}) {
    options.parallel = throwing(done);
    EXPECT_GT(
        test::expect_nothing_lost<SmallWorld>(options, fails_at, prepare, call,
                                              [](const auto &a, const auto &b) { EXPECT_EQ(a, b); }),
        0u);
  }
}

class ThreadsThrow : public testing::TestWithParam<Coding> {};

TEST_P(ThreadsThrow, InAFirstPromptThatTeachesAndPacks) {
  expect_nothing_lost(
      small_options(GetParam()), [](SmallWorld &) {},
      [](SmallWorld &world) { world.attend(0, 0, 0, 150); });
}

TEST_P(ThreadsThrow, InAPieceThatTeaches) {
  expect_nothing_lost(
      small_options(GetParam()), [](SmallWorld &world) { world.attend(0, 0, 30); },
      [](SmallWorld &world) { world.attend(0, 0, 30, 20); });
}

TEST_P(ThreadsThrow, InAStepThatFillsAPage) {
  expect_nothing_lost(
      small_options(GetParam()), [](SmallWorld &world) { world.attend(0, 0, 4 + 16 + 16 + 64 - 1); },
      [](SmallWorld &world) { world.attend(0, 0, 99, 1); });
}

TEST_P(ThreadsThrow, InABatchOfWhichTheSecondPacks) {
  for (const LearningMode learning : {LearningMode::first_tokens, LearningMode::per_sequence}) {
    Options options = small_options(GetParam());
    options.learning = learning;
    expect_nothing_lost(
        options, [](SmallWorld &world) { world.attend(0, 0, 40); },
        [](SmallWorld &world) { world.attend_batch(); });
  }
}

TEST_P(ThreadsThrow, InACallOfASequenceThatCannotWait) {
  Options options = small_options(GetParam());
  options.learning = LearningMode::frozen;  // with nothing that it could be
  expect_nothing_lost(
      options, [](SmallWorld &world) { world.attend(0, 0, 150); },
      [](SmallWorld &world) { world.attend(0, 0, 150, 40); });
}

TEST_P(ThreadsThrow, InReadingAttentionAForkAndAReorder) {
  const auto prepare = [](SmallWorld &world) { world.attend(0, 0, 150); };
  expect_nothing_lost(small_options(GetParam()), prepare, [](SmallWorld &world) {
    world.cache.attend(world.sequences[0], 1, world.in.q.view(0, 60), world.in.out.view(0, 60));
  });
  expect_nothing_lost(small_options(GetParam()), prepare, [](SmallWorld &world) {
    world.sequences[1] = world.cache.fork(world.sequences[0], 120);
  });
  expect_nothing_lost(small_options(GetParam()), prepare, [](SmallWorld &world) {
    world.cache.reorder(world.sequences, std::array{world.sequences[0], world.sequences[0]});
  });
}

INSTANTIATE_TEST_SUITE_P(Codings, ThreadsThrow,
                         testing::Values(Coding::plain, Coding::orthogonal, Coding::subspace));

TEST(ThreadsThrowByModel, InTheCallWithWhichAllLayersLearn) {
  Options options = small_options(Coding::subspace);
  options.allocation = Allocation::model;
  expect_nothing_lost(
      options, [](SmallWorld &world) { world.attend(0, 0, 0, 150); },
      [](SmallWorld &world) { world.attend(0, 1, 0, 150); });
  expect_nothing_lost(
      options, [](SmallWorld &world) { world.attend(0, 0, 150); },
      [](SmallWorld &world) { world.attend(0, 0, 150, 1); });
}

TEST(ThreadsThrow, WhatTheyThrowIsThrown) {
  Options options = small_options(Coding::plain);
  options.query_heads = options.kv_heads = 2;
  bool throws = false;
  options.parallel = [&](int count, Task task) {
    if (throws) throw std::domain_error("threads are gone");
    for (int index = 0; index < count; ++index) task(index);
  };
  SmallWorld world(options);
  throws = true;
  EXPECT_THROW(world.attend(0, 0, 150), std::domain_error);
  throws = false;
  EXPECT_EQ(world.cache.length(world.sequences[0], 0), 0);
  world.attend(0, 0, 150);
}

TEST(ThreadsThrow, OfAdaptorsAreReadyForTheNextTasks) {
  ThreadPool pool(3);
  for (const Parallel &parallel : {pool.parallel(), openmp_parallel()}) {
    EXPECT_THROW(parallel(20,
                          [](int index) {
                            if (index == 7) throw std::domain_error("task 7");
                          }),
                 std::domain_error);
    EXPECT_NO_THROW(parallel(20, [](int) {}));
  }
}

}  // namespace
}  // namespace squat::test::throwing_test
