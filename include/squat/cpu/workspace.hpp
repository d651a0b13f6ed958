#pragma once

// Scratch memory of the operations, kept from call to call, and the loop that
// hands it to tasks.

#include <algorithm>
#include <vector>

#include "squat/config.hpp"
#include "squat/cpu/buffer.hpp"
#include "squat/parallel.hpp"

namespace squat::cpu {

/// Hands out consecutive pieces of a task's scratch memory, each aligned to a
/// cache line.
class Scratch {
 public:
  Scratch(std::byte *first, std::size_t size) : next_(first), end_(first + size) {}

  template <class Scalar>
  Scalar *take(Index count) {
    auto *piece = reinterpret_cast<Scalar *>(next_);
    next_ += bytes<Scalar>(count);
    SQUAT_ASSERT(next_ <= end_);
    return piece;
  }

  /// A piece to be handed out again and again.
  Scratch split(std::size_t size) {
    auto *piece = take<std::byte>(static_cast<Index>(size));
    return {piece, size};
  }

  /// What take(count) consumes.
  template <class Scalar>
  static std::size_t bytes(Index count) {
    return (static_cast<std::size_t>(count) * sizeof(Scalar) + 63) / 64 * 64;
  }

 private:
  std::byte *next_;
  std::byte *end_;
};

/// Runs items over the engine's threads. Items are dealt to at most
/// `most_tasks` tasks in equal runs, and every task has scratch memory of its
/// own, so that memory is bounded and nothing allocates once it is there.
class Workspace {
 public:
  explicit Workspace(Parallel parallel) : parallel_(std::move(parallel)) {}

  /// Makes room for `items` items that need `bytes` of scratch each.
  void reserve(Index items, std::size_t bytes) {
    const auto tasks = static_cast<std::size_t>(task_count(items));
    if (slots_.size() < tasks) slots_.resize(tasks);
    for (std::size_t slot = 0; slot < tasks; ++slot) {
      if (slots_[slot].size() < bytes) slots_[slot] = Buffer<std::byte>(bytes);
    }
  }

  /// Calls run(item, Scratch) for every item, after a reserve() for as many.
  template <class Run>
  void for_each(Index items, Run &&run) {
    const int tasks = task_count(items);
    const auto task = [&](int index) {
      const Buffer<std::byte> &slot = slots_[static_cast<std::size_t>(index)];
      for (Index item = items * index / tasks; item < items * (index + 1) / tasks; ++item) {
        run(item, Scratch(slot.data(), slot.size()));
      }
    };
    if (tasks > 1) {
      parallel_(tasks, task);
    } else if (tasks == 1) {
      task(0);
    }
  }

  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const Buffer<std::byte> &slot : slots_) sum += slot.bytes();
    return sum;
  }

 private:
  static constexpr Index most_tasks = 64;

  int task_count(Index items) const {
    return static_cast<int>(std::min(items, parallel_ ? most_tasks : Index{1}));
  }

  Parallel parallel_;
  std::vector<Buffer<std::byte>> slots_;
};

}  // namespace squat::cpu
