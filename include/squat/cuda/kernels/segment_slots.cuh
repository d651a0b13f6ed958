#pragma once

// The slots that workers leave what they find out about a segment in.

#include <cstdint>

namespace squat::cuda {

/// The slots of one segment: those of exact rows, then those of pages.
struct SegmentSlots {
  int first_exact, exact;
  int first_packed, packed;

  /// SegmentSlots() are none.
  SegmentSlots() = default;

  /// first: the segment's first unit of `units`, which `all` busy workers share. shape: a RowShape,
  /// or what else knows `units` and `exact_units`.
  template <class Shape>
  __device__ SegmentSlots(std::int64_t units, int all, std::int64_t first, const Shape &shape) {
    const auto worker_of = [&](std::int64_t unit) {
      return static_cast<int>(((unit + 1) * all - 1) /
                              units);  // the last whose run begins at or before it
    };
    const auto count = [&](std::int64_t begin, std::int64_t end) {
      return begin < end ? worker_of(end - 1) - worker_of(begin) + 1 : 0;
    };
    const std::int64_t middle = first + shape.exact_units, end = first + shape.units;
    first_exact = worker_of(first);
    exact = count(first, middle);
    packed = count(middle, end);
    first_packed = packed > 0 ? worker_of(middle) : first_exact;
  }

  __device__ int count() const { return exact + packed; }
  __device__ bool is_packed(int slot) const { return slot >= exact; }
  __device__ int worker(int slot) const {
    return is_packed(slot) ? first_packed + slot - exact : first_exact + slot;
  }
};

}  // namespace squat::cuda
