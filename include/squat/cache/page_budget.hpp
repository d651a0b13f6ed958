#pragma once

// One limit for the pages of several caches.

#include <cstddef>

#include "squat/core/config.hpp"

namespace squat {

namespace detail {
template <class Memory>
class PagePool;
}

/// Bytes of pages that the caches of an Options::page_budget may use together: a page counts while a
/// sequence holds it, once if several do. Exact rows, statistics and workspaces come on top
/// (MemoryReport), and so do free pages: what a cache has allocated stays its own. One thread at a time
/// may call the caches that share one.
class PageBudget {
 public:
  /// Bytes of pages at most; no limit is the largest std::size_t.
  explicit PageBudget(std::size_t max_bytes) : max_bytes_(max_bytes) {}
  PageBudget(const PageBudget &) = delete;
  PageBudget &operator=(const PageBudget &) = delete;

  /// As given.
  std::size_t max_bytes() const { return max_bytes_; }
  /// Bytes of pages that sequences hold.
  std::size_t used_bytes() const { return used_bytes_; }
  /// Bytes that pages may still take.
  std::size_t free_bytes() const { return max_bytes_ - used_bytes_; }

 private:
  template <class Memory>
  friend class detail::PagePool;

  void take(std::size_t bytes) {
    SQUAT_ASSERT(bytes <= free_bytes());
    used_bytes_ += bytes;
  }
  void give_back(std::size_t bytes) { used_bytes_ -= bytes; }

  std::size_t max_bytes_, used_bytes_ = 0;
};

}  // namespace squat
