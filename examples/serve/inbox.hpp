#pragma once

// The way of requests from the threads that read them to the one that serves them.

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "clock.hpp"
#include "request.hpp"

namespace engine::serve {

class Inbox {
 public:
  struct Entry {
    Request request;
    std::shared_ptr<Client> client;
    Clock::time_point arrival = Clock::now();
  };

  /// Returns whether it was taken: not once the inbox is closed.
  bool push(Request request, std::shared_ptr<Client> client) {
    const std::lock_guard lock(mutex_);
    if (closed_) return false;
    entries_.push_back({std::move(request), std::move(client)});
    changed_.notify_all();
    return true;
  }

  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }
  bool closed() const {
    const std::lock_guard lock(mutex_);
    return closed_;
  }

  /// All that came since the last call. wait: for something to come, or for the end.
  std::vector<Entry> take(bool wait) {
    std::unique_lock lock(mutex_);
    if (wait) changed_.wait(lock, [&] { return closed_ || !entries_.empty(); });
    return std::exchange(entries_, {});
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Entry> entries_;
  bool closed_ = false;
};

}  // namespace engine::serve
