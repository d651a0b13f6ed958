#pragma once

// The threads that ggml computes a node with, as Options::parallel.

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "squat/core/parallel.hpp"

namespace squat_llama {

/// Thread 0 of a node calls the cache, whose tasks it shares with those that have come to serve(). ggml
/// has a barrier behind every node, and close() waits for all threads too: so one object serves a node
/// after the other. Outside of nodes, run() does all tasks itself.
class NodeThreads {
 public:
  /// On thread 0: for Options::parallel.
  void run(int count, const squat::Task &task) {
    task_.store(&task, std::memory_order_relaxed);
    count_.store(static_cast<std::uint32_t>(count), std::memory_order_relaxed);
    ended_.store(0, std::memory_order_relaxed);
    const std::uint64_t round = (left_.load(std::memory_order_relaxed) >> 32) + 1;
    left_.store(round << 32 | static_cast<std::uint32_t>(count), std::memory_order_release);
    while (take_task()) {
    }
    for (unsigned spins = 0; ended_.load(std::memory_order_acquire) < static_cast<std::uint32_t>(count);)
      wait(spins);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  /// On every other thread of a node: helps until close().
  void serve() {
    for (unsigned spins = 0; !closed_.load(std::memory_order_acquire);) {
      if (take_task()) {
        spins = 0;
      } else {
        wait(spins);
      }
    }
    gone_.fetch_add(1, std::memory_order_release);
  }

  /// On thread 0, at the end of a node that `helpers` other threads serve.
  void close(int helpers) {
    closed_.store(true, std::memory_order_release);
    for (unsigned spins = 0; gone_.load(std::memory_order_acquire) < helpers;) wait(spins);
    gone_.store(0, std::memory_order_relaxed);
    closed_.store(false, std::memory_order_relaxed);  // ggml's barrier tells the others
  }

 private:
  /// Whether there was one.
  bool take_task() {
    std::uint64_t left = left_.load(std::memory_order_acquire);
    while (true) {
      const auto tasks = static_cast<std::uint32_t>(left);
      if (tasks == 0) return false;
      // A round in which tasks are left has not ended: where the exchange succeeds, these are its own.
      const squat::Task *const task = task_.load(std::memory_order_relaxed);
      const std::uint32_t count = count_.load(std::memory_order_relaxed);
      if (!left_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel)) continue;
      try {
        (*task)(static_cast<int>(count - tasks));
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
      ended_.fetch_add(1, std::memory_order_release);
      return true;
    }
  }

  /// Threads wait for microseconds, unless another program has the processor.
  static void wait(unsigned &spins) {
    if (++spins % 256 == 0) std::this_thread::yield();
  }

  std::atomic<const squat::Task *> task_ = nullptr;  // of the round
  std::atomic<std::uint32_t> count_ = 0;
  std::atomic<std::uint64_t> left_ =
      0;  // tasks of the round that nobody has taken; above them its number
  std::atomic<std::uint32_t> ended_ = 0;  // tasks of the round
  std::atomic<bool> closed_ = false;
  std::atomic<int> gone_ = 0;  // threads that have seen it
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace squat_llama
