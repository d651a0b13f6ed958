#pragma once

// Ranks as threads of one process.

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <mutex>
#include <span>
#include <stdexcept>
#include <thread>
#include <vector>

namespace squat::test {

/// What threads hand each other. Where one is gone, the others throw.
class RankHub {
 public:
  explicit RankHub(int ranks) : slots_(static_cast<std::size_t>(ranks)) {}

  int ranks() const { return static_cast<int>(slots_.size()); }
  std::span<const std::byte> &slot(int rank) { return slots_[static_cast<std::size_t>(rank)]; }

  /// Waits for all ranks.
  void meet() {
    std::unique_lock lock(mutex_);
    const std::size_t round = round_;
    if (++waiting_ == slots_.size()) {
      waiting_ = 0;
      ++round_;
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return round_ != round || gone_; });
    if (round_ == round) throw std::runtime_error("another rank is gone");
  }
  void leave() {
    const std::lock_guard lock(mutex_);
    gone_ = true;
    changed_.notify_all();
  }

 private:
  std::vector<std::span<const std::byte>> slots_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t waiting_ = 0, round_ = 0;
  bool gone_ = false;
};

/// A RankTransport.
class RankThread {
 public:
  RankThread(RankHub &hub, int rank) : hub_(&hub), rank_(rank) {}

  int rank() const { return rank_; }
  int ranks() const { return hub_->ranks(); }

  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) {
    hub_->slot(rank_) = mine;
    hub_->meet();
    auto to = all.begin();
    for (int rank = 0; rank < ranks(); ++rank)
      to = std::copy(hub_->slot(rank).begin(), hub_->slot(rank).end(), to);
    hub_->meet();
  }
  void broadcast(std::span<std::byte> bytes) {
    if (rank_ == 0) hub_->slot(0) = bytes;
    hub_->meet();
    if (rank_ != 0) std::copy(hub_->slot(0).begin(), hub_->slot(0).end(), bytes.begin());
    hub_->meet();
  }

 private:
  RankHub *hub_;
  int rank_;
};

/// Calls run(transport) on so many threads; throws what the first of them threw.
template <class Run>
void run_ranks(int ranks, Run &&run) {
  RankHub hub(ranks);
  std::exception_ptr thrown;
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        RankThread transport(hub, rank);
        run(transport);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!thrown) thrown = std::current_exception();
        hub.leave();
      }
    });
  }
  for (std::thread &thread : threads) thread.join();
  if (thrown) std::rethrow_exception(thrown);
}

}  // namespace squat::test
