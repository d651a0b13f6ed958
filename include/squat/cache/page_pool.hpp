#pragma once

// Pages of one size, counted references, never given back before the pool goes.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "squat/cache/page_budget.hpp"
#include "squat/core/config.hpp"

namespace squat::detail {

/// A page's number in its pool.
using PageIndex = std::uint32_t;

/// How large the slabs of a pool are.
enum class SlabSize {
  whole,    ///< Memory::slab_bytes at least
  growing,  ///< half of what the pool has, up to that: for pools beside many others
};

/// Hands out pages of `page_bytes` bytes, at most `max_pages` of them, from
/// slabs of memory. A page is free again when its last reference is released. Pages in use count in
/// `budget`, if there is one.
template <class Memory>
class PagePool {
 public:
  PagePool(std::size_t page_bytes, std::size_t max_pages, SlabSize slab_size,
           std::shared_ptr<PageBudget> budget)
      : page_bytes_(page_bytes),
        slab_size_(slab_size),
        budget_(std::move(budget)),
        max_pages_(std::min<std::size_t>(max_pages, std::numeric_limits<PageIndex>::max())),
        slab_pages_(slab_bytes(page_bytes) / page_bytes) {}

  PagePool(PagePool &&) noexcept = default;
  ~PagePool() {
    if (budget_) budget_->give_back(used_bytes());
  }

  /// Makes sure that `count` pages can be acquired without allocating. No more than `max_pages` are
  /// used then.
  void reserve(std::size_t count) {
    SQUAT_ASSERT(count <= max_pages_ - used());
    while (free_.size() < count) add_slab();
  }

  /// One of the pages a reserve() made sure of.
  PageIndex acquire() {
    SQUAT_ASSERT(!free_.empty());
    const PageIndex page = free_.back();
    free_.pop_back();
    references_[page] = 1;
    if (budget_) budget_->take(page_bytes_);
    return page;
  }

  /// One more reference to a page in use.
  void retain(PageIndex page) {
    SQUAT_ASSERT(references_[page] > 0);
    ++references_[page];
  }

  void release(PageIndex page) {
    SQUAT_ASSERT(references_[page] > 0);
    if (--references_[page] > 0) return;
    free_.push_back(page);
    if (budget_) budget_->give_back(page_bytes_);
  }

  std::uint32_t references(PageIndex page) const { return references_[page]; }

  std::byte *data(PageIndex page) const {
    const auto behind = std::upper_bound(slabs_.begin(), slabs_.end(), page,
                                         [](PageIndex at, const Slab &slab) { return at < slab.first; });
    const Slab &slab = *std::prev(behind);
    return slab.memory.data() + (page - slab.first) * page_bytes_;
  }

  std::size_t slabs() const { return slabs_.size(); }

  /// Gives back all slabs but the first `kept`, whose pages are free: for a call that failed.
  void drop_slabs(std::size_t kept) {
    if (slabs_.size() <= kept) return;
    const std::size_t pages = slabs_[kept].first;
    SQUAT_ASSERT(std::all_of(references_.begin() + static_cast<std::ptrdiff_t>(pages), references_.end(),
                             [](std::uint32_t references) { return references == 0; }));
    free_.erase(
        std::remove_if(free_.begin(), free_.end(), [&](PageIndex page) { return page >= pages; }),
        free_.end());
    references_.resize(pages);
    slabs_.erase(slabs_.begin() + static_cast<std::ptrdiff_t>(kept), slabs_.end());
  }

  std::size_t page_bytes() const { return page_bytes_; }
  std::size_t used() const { return references_.size() - free_.size(); }
  std::size_t used_bytes() const { return used() * page_bytes_; }

  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const Slab &slab : slabs_) sum += slab.memory.bytes();
    return sum;
  }

 private:
  struct Slab {
    std::size_t first;  // of its pages
    Memory memory;
  };

  /// Bytes of a whole slab: the least multiple of what its memory comes in of which
  /// pages leave less than a sixteenth over.
  static std::size_t slab_bytes(std::size_t page_bytes) {
    std::size_t bytes = Memory::slab_bytes;
    while (bytes < page_bytes || bytes % page_bytes > bytes / 16) bytes += Memory::slab_bytes;
    return bytes;
  }

  void add_slab() {
    const std::size_t first = references_.size();
    constexpr std::size_t least = 4;
    const std::size_t wanted = slab_size_ == SlabSize::whole
                                   ? slab_pages_
                                   : std::clamp(first / 2, std::min(least, slab_pages_), slab_pages_);
    const std::size_t pages = std::min(wanted, max_pages_ - first);
    slabs_.reserve(slabs_.size() + 1);
    free_.reserve(first + pages);
    references_.reserve(first + pages);
    slabs_.push_back(
        {first, Memory(pages == slab_pages_ ? slab_bytes(page_bytes_) : pages * page_bytes_)});
    references_.resize(first + pages, 0);
    for (std::size_t page = first + pages; page > first; --page) {
      free_.push_back(static_cast<PageIndex>(page - 1));
    }
  }

  std::size_t page_bytes_;
  SlabSize slab_size_;
  std::shared_ptr<PageBudget> budget_;
  std::size_t max_pages_;
  std::size_t slab_pages_;
  std::vector<Slab> slabs_;
  std::vector<std::uint32_t> references_;  // a page each
  std::vector<PageIndex> free_;
};

}  // namespace squat::detail
