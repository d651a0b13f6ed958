// Threads of a graph's node as Options::parallel.

#include "memory/node_threads.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <stdexcept>
#include <thread>
#include <vector>

namespace {

using squat_llama::NodeThreads;

/// Calls compute(node) on thread 0 of each node, as ggml does: threads - 1 others serve, and a barrier
/// is behind every node.
template <class Compute>
void run_nodes(NodeThreads &node_threads, int nodes, int threads, const Compute &compute) {
  std::barrier barrier(threads);
  std::vector<std::jthread> helpers;
  for (int thread = 1; thread < threads; ++thread) {
    helpers.emplace_back([&] {
      for (int node = 0; node < nodes; ++node) {
        node_threads.serve();
        barrier.arrive_and_wait();
      }
    });
  }
  for (int node = 0; node < nodes; ++node) {
    compute(node);
    node_threads.close(threads - 1);
    barrier.arrive_and_wait();
  }
}

TEST(NodeThreads, EveryTaskRunsOnceInEveryCallOfEveryNode) {
  constexpr int nodes = 200, most_tasks = 9;
  for (const int threads : {1, 2, 5}) {
    NodeThreads node_threads;
    std::vector<std::atomic<int>> ran(most_tasks);
    run_nodes(node_threads, nodes, threads, [&](int node) {
      for (const int tasks : {node % most_tasks, most_tasks, 0}) {
        for (std::atomic<int> &count : ran) count = 0;
        node_threads.run(tasks, [&](int task) { ++ran[static_cast<std::size_t>(task)]; });
        for (int task = 0; task < most_tasks; ++task)
          ASSERT_EQ(ran[static_cast<std::size_t>(task)], task < tasks ? 1 : 0) << threads << " threads";
      }
    });
  }
}

TEST(NodeThreads, TasksRunOutsideOfNodes) {
  NodeThreads node_threads;
  int ran = 0;
  node_threads.run(3, [&](int) { ++ran; });
  EXPECT_EQ(ran, 3);
}

TEST(NodeThreads, AnExceptionComesOutOnceAllTasksHaveEnded) {
  NodeThreads node_threads;
  run_nodes(node_threads, 50, 3, [&](int) {
    std::atomic<int> ran = 0;
    const auto failing = [&](int task) {
      ++ran;
      if (task == 1) throw std::runtime_error("task 1");
    };
    EXPECT_THROW(node_threads.run(4, failing), std::runtime_error);
    EXPECT_EQ(ran, 4);
    EXPECT_NO_THROW(node_threads.run(1, [&](int) { ++ran; }));
  });
}

}  // namespace
