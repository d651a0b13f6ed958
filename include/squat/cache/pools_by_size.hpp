#pragma once

// Pages of several sizes: a pool for each size, one limit for all.

#include <algorithm>
#include <cstddef>
#include <exception>
#include <limits>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "squat/cache/page_budget.hpp"
#include "squat/cache/page_pool.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"

namespace squat::detail {

/// The pools of a cache's codings, by name; codings whose pages have one size share theirs.
template <class Memory>
class PoolsBySize {
 public:
  using Pool = PagePool<Memory>;

  PoolsBySize(std::size_t max_pages, std::shared_ptr<PageBudget> budget, SlabSize slab_size)
      : slab_size_(slab_size),
        budget_(std::move(budget)),
        max_pages_(std::min<std::size_t>(max_pages, std::numeric_limits<PageIndex>::max())) {}

  /// From now on pages of `coding`, which has none, have that size. Allocates; on failure nothing has
  /// changed.
  void set_page_bytes(Index coding, std::size_t page_bytes) {
    const auto name = static_cast<std::size_t>(coding);
    if (name >= pool_of_coding_.size()) pool_of_coding_.resize(name + 1);
    std::size_t pool = 0;
    while (pool < pools_.size() && pools_[pool].page_bytes() != page_bytes) ++pool;
    if (pool == pools_.size()) pools_.emplace_back(page_bytes, max_pages_, slab_size_, budget_);
    pool_of_coding_[name] = pool;
  }

  Pool &of(Index coding) { return pools_[pool_of_coding_[static_cast<std::size_t>(coding)]]; }
  const Pool &of(Index coding) const {
    return pools_[pool_of_coding_[static_cast<std::size_t>(coding)]];
  }

  /// Makes sure that pages can be acquired without allocating: each(visit) calls visit(coding, pages)
  /// for all that are wanted. Throws Error where a limit is passed.
  template <class Each>
  void reserve(Each &&each) {
    const std::size_t count = pages_of(each), bytes = bytes_of(each);
    if (count > max_pages_ - used()) throw_invalid("max_pages", max_pages_, "at least", used() + count);
    if (bytes > free_bytes())
      throw_invalid("page_budget", budget_->max_bytes(), "at least", budget_->used_bytes() + bytes);
    if (count > 0) reserve_in_pools(each);
  }

  /// The same for pages that can be done without. Returns whether they are there.
  template <class Each>
  bool try_reserve(Each &&each) {
    const std::size_t count = pages_of(each);
    if (count > max_pages_ - used() || bytes_of(each) > free_bytes()) return false;
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

  /// Pages that are in use, and those that still may be, if all are of the largest size.
  std::size_t used() const { return sum(&Pool::used); }
  std::size_t free() const {
    std::size_t pages = max_pages_ - used();
    for (const Pool &pool : pools_) pages = std::min(pages, free_bytes() / pool.page_bytes());
    return pages;
  }

  std::size_t bytes() const { return sum(&Pool::bytes); }
  std::size_t used_bytes() const { return sum(&Pool::used_bytes); }

 private:
  std::size_t free_bytes() const {
    return budget_ ? budget_->free_bytes() : std::numeric_limits<std::size_t>::max();
  }

  /// The sum of weight(coding) over the pages that are wanted.
  template <class Each, class Weight>
  static std::size_t sum_of(Each &&each, Weight &&weight) {
    std::size_t sum = 0;
    each([&](Index coding, std::size_t pages) { sum += pages * weight(coding); });
    return sum;
  }
  template <class Each>
  static std::size_t pages_of(Each &&each) {
    return sum_of(each, [](Index) { return std::size_t{1}; });
  }
  template <class Each>
  std::size_t bytes_of(Each &&each) const {
    return sum_of(each, [&](Index coding) { return of(coding).page_bytes(); });
  }

  template <class Each>
  void reserve_in_pools(Each &&each) {
    for (Pool &pool : pools_)
      pool.reserve(sum_of(each, [&](Index coding) { return std::size_t{&of(coding) == &pool}; }));
  }

  std::size_t sum(std::size_t (Pool::*of_pool)() const) const {
    const auto add = [&](std::size_t so_far, const Pool &pool) { return so_far + (pool.*of_pool)(); };
    return std::accumulate(pools_.begin(), pools_.end(), std::size_t{0}, add);
  }

  SlabSize slab_size_;
  std::shared_ptr<PageBudget> budget_;
  std::size_t max_pages_;
  std::vector<Pool> pools_;  // of as many sizes
  std::vector<std::size_t> pool_of_coding_;
};

}  // namespace squat::detail
