// Adaptors for Options::parallel run every task once.

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "squat/parallel/openmp.hpp"
#include "squat/parallel/thread_pool.hpp"

namespace squat::test::parallel_test {
namespace {

void expect_each_once(const Parallel &parallel) {
  for (int count : {0, 1, 2, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
    parallel(count, [&](int task) { ++runs[static_cast<std::size_t>(task)]; });
    for (const auto &times : runs) EXPECT_EQ(times, 1);
  }
}

TEST(OpenMp, RunsEveryTaskOnce) { expect_each_once(openmp_parallel()); }

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (unsigned threads : {1u, 4u}) {
    ThreadPool pool(threads);
    expect_each_once(pool.parallel());
  }
}

/// Of thousands of rounds, some find the threads awake and some asleep.
TEST(ThreadPool, RunsRoundAfterRound) {
  ThreadPool pool(3);
  std::array<int, 5> runs{};
  for (int round = 0; round < 3000; ++round) {
    if (round % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const int count = 1 + round % 5;
    std::array<int, 5> before = runs;
    pool.run(count, [&](int task) { ++runs[static_cast<std::size_t>(task)]; });
    for (int task = 0; task < count; ++task) ++before[static_cast<std::size_t>(task)];
    ASSERT_EQ(runs, before);
  }
}

TEST(ThreadPool, HandsOnWhatATaskThrowsWhenAllHaveEnded) {
  ThreadPool pool(4);
  std::atomic<int> ended = 0;
  const auto task = [&](int index) {
    ++ended;
    if (index == 3) throw std::runtime_error("task 3");
  };
  EXPECT_THROW(pool.run(8, task), std::runtime_error);
  EXPECT_EQ(ended, 8);
  EXPECT_NO_THROW(pool.run(8, [](int) {}));
}

}  // namespace
}  // namespace squat::test::parallel_test
