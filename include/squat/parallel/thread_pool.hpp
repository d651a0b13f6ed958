#pragma once

// Threads of our own for Options::parallel, for engines that have none.

#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "squat/core/parallel.hpp"

namespace squat {

/// Threads that wait for tasks. The thread that calls run() works too, so a pool
/// of n threads starts n - 1. One caller at a time. A pool may outlive its
/// caches and must not be destroyed before them. Threads wait busily for some tens of microseconds, in
/// which the next layer's call mostly comes, before they sleep, from which they would wake as late.
class ThreadPool {
 public:
  /// threads: at least 1. Default: as many as the machine runs at once.
  explicit ThreadPool(unsigned threads = std::thread::hardware_concurrency()) {
    for (unsigned i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  ~ThreadPool() {
    stopping_ = true;
    begin_round();
    for (std::thread &worker : workers_) worker.join();
  }

  /// Runs task(0) ... task(count - 1) and returns when all have ended. The first
  /// exception that a task throws is thrown here, after the rest have ended.
  void run(int count, Task task) {
    task_ = &task;
    count_ = count;
    next_ = 0;
    busy_ = static_cast<int>(workers_.size());
    begin_round();
    take_tasks(task, count);
    while (const int busy = busy_.load(std::memory_order_acquire)) wait_while(busy_, busy);
    task_ = nullptr;
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  /// For Options::parallel.
  Parallel parallel() {
    return [this](int count, Task task) { run(count, task); };
  }

 private:
  /// What was written before is seen by workers that have seen the round.
  void begin_round() {
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }

  void work() {
    for (int seen = 0;;) {
      wait_while(round_, seen);
      seen = round_.load(std::memory_order_acquire);
      if (stopping_) return;
      take_tasks(*task_, count_);
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
    }
  }

  void take_tasks(const Task &task, int count) {
    for (int index = next_++; index < count; index = next_++) {
      try {
        task(index);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
    }
  }

  static void wait_while(const std::atomic<int> &value, int old) {
    constexpr int spins = 2000;
    for (int i = 0; i < spins; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      pause();
    }
    value.wait(old, std::memory_order_acquire);
  }

  /// Leaves the core to its other thread for a moment.
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::vector<std::thread> workers_;
  std::atomic<int> round_ = 0;  // of tasks, or the end
  bool stopping_ = false;
  const Task *task_ = nullptr;  // of the round
  int count_ = 0;
  std::atomic<int> next_ = 0;  // task nobody has taken
  std::atomic<int> busy_ = 0;  // workers that have not ended the round
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace squat
