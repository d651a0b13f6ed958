#pragma once

// Threads of our own for Options::parallel, for engines that have none.

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "squat/core/parallel.hpp"

namespace squat {

/// Threads that wait for tasks. The thread that calls run() works too, so a pool
/// of n threads starts n - 1. One caller at a time. A pool may outlive its
/// caches and must not be destroyed before them.
class ThreadPool {
 public:
  /// threads: at least 1. Default: as many as the machine runs at once.
  explicit ThreadPool(unsigned threads = std::thread::hardware_concurrency()) {
    for (unsigned i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  ~ThreadPool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread &worker : workers_) worker.join();
  }

  /// Runs task(0) ... task(count - 1) and returns when all have ended. The first
  /// exception that a task throws is thrown here, after the rest have ended.
  void run(int count, Task task) {
    {
      const std::lock_guard lock(mutex_);
      task_ = &task;
      count_ = count;
      next_ = 0;
      busy_ = workers_.size();
      ++round_;
    }
    wake_.notify_all();
    take_tasks(task, count);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
    task_ = nullptr;
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  /// For Options::parallel.
  Parallel parallel() {
    return [this](int count, Task task) { run(count, task); };
  }

 private:
  void work() {
    unsigned long seen = 0;
    while (true) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || round_ != seen; });
      if (stopping_) return;
      seen = round_;
      const Task task = *task_;
      const int count = count_;
      lock.unlock();
      take_tasks(task, count);
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
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

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const Task *task_ = nullptr;  // of the round
  int count_ = 0;
  std::atomic<int> next_ = 0;  // task nobody has taken
  std::size_t busy_ = 0;       // workers that have not ended the round
  unsigned long round_ = 0;
  bool stopping_ = false;
  std::exception_ptr error_;
};

}  // namespace squat
