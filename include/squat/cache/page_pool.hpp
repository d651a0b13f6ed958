#pragma once

// Pages of one size, counted references, never given back before the pool goes.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <vector>

#include "squat/core/config.hpp"
#include "squat/core/error.hpp"

namespace squat::detail {

/// A page's number in its pool.
using PageIndex = std::uint32_t;

/// Hands out pages of `page_bytes` bytes, at most `max_pages` of them, from
/// slabs of memory, of at least Memory::slab_bytes. A page is free again when its last reference is
/// released.
template <class Memory>
class PagePool {
 public:
  PagePool(std::size_t page_bytes, std::size_t max_pages)
      : page_bytes_(page_bytes),
        max_pages_(std::min<std::size_t>(max_pages, std::numeric_limits<PageIndex>::max())),
        slab_pages_(slab_bytes(page_bytes) / page_bytes) {}

  /// Makes sure that `count` pages can be acquired without allocating. Throws
  /// Error where the limit is passed.
  void reserve(std::size_t count) {
    if (count > max_pages_ - used()) {
      throw_invalid("max_pages", max_pages_, "at least", used() + count);
    }
    while (free_.size() < count) add_slab();
  }

  /// The same for pages that can be done without. Returns whether they are there.
  bool try_reserve(std::size_t count) {
    if (count > max_pages_ - used()) return false;
    try {
      reserve(count);
      return true;
    } catch (const std::exception &) {
      return false;  // no memory
    }
  }

  /// One of the pages a reserve() made sure of.
  PageIndex acquire() {
    SQUAT_ASSERT(!free_.empty());
    const PageIndex page = free_.back();
    free_.pop_back();
    references_[page] = 1;
    return page;
  }

  /// One more reference to a page in use.
  void retain(PageIndex page) {
    SQUAT_ASSERT(references_[page] > 0);
    ++references_[page];
  }

  void release(PageIndex page) {
    SQUAT_ASSERT(references_[page] > 0);
    if (--references_[page] == 0) free_.push_back(page);
  }

  std::byte *data(PageIndex page) const {
    return slabs_[page / slab_pages_].data() + page % slab_pages_ * page_bytes_;
  }

  std::size_t used() const { return references_.size() - free_.size(); }
  std::size_t used_bytes() const { return used() * page_bytes_; }

  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const Memory &slab : slabs_) sum += slab.bytes();
    return sum;
  }

 private:
  /// Bytes of a slab: the least multiple of what its memory comes in of which
  /// pages leave less than a sixteenth over.
  static std::size_t slab_bytes(std::size_t page_bytes) {
    std::size_t bytes = Memory::slab_bytes;
    while (bytes < page_bytes || bytes % page_bytes > bytes / 16) bytes += Memory::slab_bytes;
    return bytes;
  }

  void add_slab() {
    const std::size_t first = references_.size();
    const std::size_t pages = std::min(slab_pages_, max_pages_ - first);
    slabs_.reserve(slabs_.size() + 1);
    free_.reserve(first + pages);
    references_.reserve(first + pages);
    slabs_.emplace_back(pages == slab_pages_ ? slab_bytes(page_bytes_) : pages * page_bytes_);
    references_.resize(first + pages, 0);
    for (std::size_t page = first + pages; page > first; --page) {
      free_.push_back(static_cast<PageIndex>(page - 1));
    }
  }

  std::size_t page_bytes_;
  std::size_t max_pages_;
  std::size_t slab_pages_;
  std::vector<Memory> slabs_;
  std::vector<std::uint32_t> references_;  // a page each
  std::vector<PageIndex> free_;
};

}  // namespace squat::detail
