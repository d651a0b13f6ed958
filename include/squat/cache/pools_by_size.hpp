#pragma once

// Pages of several sizes: a pool for each size, one limit for all.

#include <algorithm>
#include <cstddef>
#include <exception>
#include <limits>
#include <numeric>
#include <vector>

#include "squat/cache/page_pool.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"

namespace squat::detail {

/// The pools of a cache's codings, by name; codings whose pages have one size share theirs.
template <class Memory>
class PoolsBySize {
 public:
  using Pool = PagePool<Memory>;

  PoolsBySize(std::size_t max_pages, SlabSize slab_size)
      : slab_size_(slab_size),
        max_pages_(std::min<std::size_t>(max_pages, std::numeric_limits<PageIndex>::max())) {}

  /// From now on pages of `coding`, which has none, have that size. Allocates; on failure nothing has
  /// changed.
  void set_page_bytes(Index coding, std::size_t page_bytes) {
    const auto name = static_cast<std::size_t>(coding);
    if (name >= pool_of_coding_.size()) pool_of_coding_.resize(name + 1);
    std::size_t pool = 0;
    while (pool < pools_.size() && pools_[pool].page_bytes() != page_bytes) ++pool;
    if (pool == pools_.size()) pools_.emplace_back(page_bytes, max_pages_, slab_size_);
    pool_of_coding_[name] = pool;
  }

  Pool &of(Index coding) { return pools_[pool_of_coding_[static_cast<std::size_t>(coding)]]; }
  const Pool &of(Index coding) const {
    return pools_[pool_of_coding_[static_cast<std::size_t>(coding)]];
  }

  /// Makes sure that pages can be acquired without allocating: each(visit) calls visit(coding, pages)
  /// for all that are wanted. Throws Error where the limit is passed.
  template <class Each>
  void reserve(Each &&each) {
    const std::size_t count = pages_of(each, [](Index) { return true; });
    if (count > free()) throw_invalid("max_pages", max_pages_, "at least", used() + count);
    if (count > 0) reserve_in_pools(each);
  }

  /// The same for pages that can be done without. Returns whether they are there.
  template <class Each>
  bool try_reserve(Each &&each) {
    const std::size_t count = pages_of(each, [](Index) { return true; });
    if (count > free()) return false;
    try {
      if (count > 0) reserve_in_pools(each);
      return true;
    } catch (const std::exception &) {
      return false;  // no memory
    }
  }

  /// How many slabs there are, of each size.
  using Mark = std::vector<std::size_t>;
  Mark mark() const {
    Mark slabs;
    for (const Pool &pool : pools_) slabs.push_back(pool.slabs());
    return slabs;
  }
  /// Gives the slabs back that came after, whose pages are free.
  void back_to(const Mark &mark) {
    for (std::size_t i = 0; i < pools_.size(); ++i) pools_[i].drop_slabs(i < mark.size() ? mark[i] : 0);
  }

  /// Pages that are in use, and those that still may be.
  std::size_t used() const { return sum(&Pool::used); }
  std::size_t free() const { return max_pages_ - used(); }

  std::size_t bytes() const { return sum(&Pool::bytes); }
  std::size_t used_bytes() const { return sum(&Pool::used_bytes); }

 private:
  template <class Each, class Counts>
  static std::size_t pages_of(Each &&each, Counts &&counts) {
    std::size_t sum = 0;
    each([&](Index coding, std::size_t pages) { sum += counts(coding) ? pages : 0; });
    return sum;
  }

  template <class Each>
  void reserve_in_pools(Each &&each) {
    for (Pool &pool : pools_)
      pool.reserve(pages_of(each, [&](Index coding) { return &of(coding) == &pool; }));
  }

  std::size_t sum(std::size_t (Pool::*of_pool)() const) const {
    const auto add = [&](std::size_t so_far, const Pool &pool) { return so_far + (pool.*of_pool)(); };
    return std::accumulate(pools_.begin(), pools_.end(), std::size_t{0}, add);
  }

  SlabSize slab_size_;
  std::size_t max_pages_;
  std::vector<Pool> pools_;  // of as many sizes
  std::vector<std::size_t> pool_of_coding_;
};

}  // namespace squat::detail
