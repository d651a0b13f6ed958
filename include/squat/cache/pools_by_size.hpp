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

/// The pools of a cache's layers; layers whose pages have one size share theirs.
template <class Memory>
class PoolsBySize {
 public:
  using Pool = PagePool<Memory>;

  PoolsBySize(std::size_t layers, std::size_t max_pages, SlabSize slab_size)
      : slab_size_(slab_size),
        max_pages_(std::min<std::size_t>(max_pages, std::numeric_limits<PageIndex>::max())),
        pool_of_layer_(layers) {}

  /// From now on pages of `layer`, which has none, have that size. Allocates; on failure nothing has
  /// changed.
  void set_page_bytes(int layer, std::size_t page_bytes) {
    std::size_t pool = 0;
    while (pool < pools_.size() && pools_[pool].page_bytes() != page_bytes) ++pool;
    if (pool == pools_.size()) pools_.emplace_back(page_bytes, max_pages_, slab_size_);
    pool_of_layer_[static_cast<std::size_t>(layer)] = pool;
  }

  Pool &of(int layer) { return pools_[pool_of_layer_[static_cast<std::size_t>(layer)]]; }
  const Pool &of(int layer) const { return pools_[pool_of_layer_[static_cast<std::size_t>(layer)]]; }

  /// Makes sure that `count` pages of a layer can be acquired without allocating. Throws Error where
  /// the limit is passed.
  void reserve(int layer, std::size_t count) {
    if (count > free()) {
      throw_invalid("max_pages", max_pages_, "at least", used() + count);
    }
    of(layer).reserve(count);
  }

  /// The same for pages that can be done without. Returns whether they are there.
  bool try_reserve(int layer, std::size_t count) {
    if (count > free()) return false;
    try {
      of(layer).reserve(count);
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
  std::size_t sum(std::size_t (Pool::*of_pool)() const) const {
    const auto add = [&](std::size_t so_far, const Pool &pool) { return so_far + (pool.*of_pool)(); };
    return std::accumulate(pools_.begin(), pools_.end(), std::size_t{0}, add);
  }

  SlabSize slab_size_;
  std::size_t max_pages_;
  std::vector<Pool> pools_;  // of as many sizes
  std::vector<std::size_t> pool_of_layer_;
};

}  // namespace squat::detail
