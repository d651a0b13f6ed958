#pragma once

// Memory of the CPU backend.

#include <cstddef>
#include <memory>
#include <new>

#include "squat/core/config.hpp"

namespace squat::cpu {

/// `size` elements of trivial type, uninitialised, aligned to a cache line.
template <class Scalar>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t size)
      : data_(static_cast<Scalar *>(::operator new(size * sizeof(Scalar), alignment))), size_(size) {}

  Scalar *data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return size_ * sizeof(Scalar); }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Release {
    void operator()(Scalar *data) const { ::operator delete(data, alignment); }
  };
  std::unique_ptr<Scalar, Release> data_;
  std::size_t size_ = 0;
};

}  // namespace squat::cpu
