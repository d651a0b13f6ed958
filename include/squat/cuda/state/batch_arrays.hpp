#pragma once

// The entries of decode steps in device memory, where captured graphs find them again.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "squat/core/error.hpp"
#include "squat/cuda/state/device_buffer.hpp"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// The batches of the last few calls, and those that graphs were captured with, which stay as they are.
class BatchArrays {
 public:
  /// most: batches kept beside those of graphs.
  explicit BatchArrays(std::size_t most = 1) : most_(most) {}

  /// The entries in device memory. They are uploaded where they are new; while the stream is being
  /// captured they must be there already.
  const BatchEntry *find(std::span<const BatchEntry> entries, bool capturing, cudaStream_t stream) {
    const auto same = [&](const Array &array) {
      return std::equal(entries.begin(), entries.end(), array.entries.begin(), array.entries.end());
    };
    auto found = std::find_if(arrays_.begin(), arrays_.end(), same);
    if (found == arrays_.end()) {
      if (capturing) {
        throw Error("squat: stream is being captured, and the batch is new: take the step once before");
      }
      found = oldest();
      found->entries.clear();  // until all is there
      if (found->device.size() < entries.size())
        found->device = DeviceBuffer<BatchEntry>(entries.size());
      upload(entries, found->device.data(), stream);
      found->entries.assign(entries.begin(), entries.end());
    }
    found->captured |= capturing;
    found->call = ++call_;
    return found->device.data();
  }

  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const Array &array : arrays_) sum += array.device.bytes();
    return sum;
  }

 private:
  struct Array {
    std::vector<BatchEntry> entries;
    DeviceBuffer<BatchEntry> device;
    bool captured = false;
    std::uint64_t call = 0;  // that asked for it last
  };

  /// A new array, or the one that was not asked for for longest.
  std::vector<Array>::iterator oldest() {
    const auto age = [](const Array &array) { return array.captured ? ~std::uint64_t{0} : array.call; };
    const auto kept = std::count_if(arrays_.begin(), arrays_.end(),
                                    [](const Array &array) { return !array.captured; });
    if (static_cast<std::size_t>(kept) < most_) return arrays_.insert(arrays_.end(), Array{});
    return std::min_element(arrays_.begin(), arrays_.end(),
                            [&](const Array &a, const Array &b) { return age(a) < age(b); });
  }

  std::size_t most_;
  std::uint64_t call_ = 0;
  std::vector<Array> arrays_;
};

}  // namespace squat::cuda
