#pragma once

// Scratch memory of the operations, kept from call to call, and the loop that
// hands it to tasks.

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "squat/core/config.hpp"
#include "squat/core/parallel.hpp"
#include "squat/cpu/buffer.hpp"

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

/// One of up to 64 places, the first that nobody else holds: as many are ever
/// touched as tasks run at once, and those stay in the caches.
class Place {
 public:
  /// free: a bit for every place, set while nobody holds it; one of them has to be.
  explicit Place(std::atomic<std::uint64_t> &free) : free_(free) {
    std::uint64_t places = free.load(std::memory_order_relaxed), others;
    do {
      others = places & (places - 1);
    } while (!free.compare_exchange_weak(places, others, std::memory_order_acquire,
                                         std::memory_order_relaxed));
    bit_ = places ^ others;
  }
  ~Place() { free_.fetch_or(bit_, std::memory_order_release); }

  Place(const Place &) = delete;
  Place &operator=(const Place &) = delete;

  std::size_t index() const { return static_cast<std::size_t>(std::countr_zero(bit_)); }

 private:
  std::atomic<std::uint64_t> &free_;
  std::uint64_t bit_;
};

/// Runs items over the engine's threads. Items are dealt to at most
/// `most_tasks` tasks in equal runs, and every task that runs has scratch memory of
/// its own, so that memory is bounded and nothing allocates once it is there.
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
    std::atomic<std::uint64_t> free = ~std::uint64_t{0};
    const auto task = [&](int index) {
      const Place place(free);
      const Buffer<std::byte> &slot = slots_[place.index()];
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

  /// The same on the thread that calls.
  template <class Run>
  void for_each_here(Index items, Run &&run) {
    for (Index item = 0; item < items; ++item) run(item, Scratch(slots_[0].data(), slots_[0].size()));
  }

  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const Buffer<std::byte> &slot : slots_) sum += slot.bytes();
    return sum;
  }

 private:
  static constexpr Index most_tasks = 64;  // as many as Place has bits

  int task_count(Index items) const {
    return static_cast<int>(std::min(items, parallel_ ? most_tasks : Index{1}));
  }

  Parallel parallel_;
  std::vector<Buffer<std::byte>> slots_;
};

}  // namespace squat::cpu
