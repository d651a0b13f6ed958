// Adaptors for Options::parallel run every task once.

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

#include "squat/parallel/openmp.hpp"
#include "squat/parallel/thread_pool.hpp"

namespace squat::test {
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
}  // namespace squat::test
