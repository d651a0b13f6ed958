#pragma once

// Memory that packed pages live in.
//
// A decode step reads every page once, each head's part of it apart from the
// next, so that at 4 KiB a page of the operating system every part begins with
// addresses to look up. Large pages spare that, where the system has them to give:
// a tenth of the time of plain reading (Zen 5, a virtual machine).

#include <cstddef>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "squat/core/config.hpp"

namespace squat::cpu {

/// Bytes on large pages of the operating system: what takes one up whole starts
/// at its beginning; less than that is aligned to a cache line, so that a small
/// cache takes no more than it asks for.
class PageMemory {
 public:
  /// Of x86-64, and of AArch64 with its usual 4 KiB.
  static constexpr std::size_t large_page = std::size_t{2} << 20;
  static constexpr std::size_t slab_bytes = large_page;  // see PagePool

  explicit PageMemory(std::size_t size)
      : data_(static_cast<std::byte *>(::operator new(size, alignment(size))), Release{alignment(size)}),
        size_(size) {
#if defined(__linux__)
    // A wish: where it is not granted, memory is as it was.
    if (size >= large_page) madvise(data_.get(), size / large_page * large_page, MADV_HUGEPAGE);
#endif
  }

  std::byte *data() const { return data_.get(); }
  std::size_t bytes() const { return size_; }

 private:
  struct Release {
    std::align_val_t alignment;
    void operator()(std::byte *data) const { ::operator delete(data, alignment); }
  };

  static constexpr std::align_val_t alignment(std::size_t size) {
    return std::align_val_t{size >= large_page ? large_page : std::size_t{64}};
  }

  std::unique_ptr<std::byte, Release> data_;
  std::size_t size_;
};

}  // namespace squat::cpu
