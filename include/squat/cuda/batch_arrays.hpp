#pragma once

// The entries of decode steps in device memory, where captured graphs find them again.

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "squat/cuda/device_buffer.hpp"
#include "squat/cuda/device_state.cuh"
#include "squat/error.hpp"

namespace squat::cuda {

/// One layer's batches: the one of the last step, and those that graphs were captured with, which stay
/// as they are.
class BatchArrays {
 public:
  /// The entries in device memory. They are uploaded where they changed; while the stream is being
  /// captured they must be there already.
  const BatchEntry *find(std::span<const BatchEntry> entries, bool capturing, cudaStream_t stream) {
    const auto same = [&](const Array &array) {
      return std::equal(entries.begin(), entries.end(), array.entries.begin(), array.entries.end(),
                        [](const BatchEntry &a, const BatchEntry &b) {
                          return a.state == b.state && a.first_row == b.first_row &&
                                 a.tokens == b.tokens;
                        });
    };
    auto found = std::find_if(arrays_.begin(), arrays_.end(), same);
    if (capturing) {
      if (found == arrays_.end()) {
        throw Error("squat: stream is being captured, and the batch is new: take the step once before");
      }
      found->captured = true;
      return found->device.data();
    }
    if (found != arrays_.end()) return found->device.data();
    found =
        std::find_if(arrays_.begin(), arrays_.end(), [](const Array &array) { return !array.captured; });
    if (found == arrays_.end()) found = arrays_.insert(found, Array{});
    found->entries.clear();  // until all is there
    if (found->device.size() < entries.size()) found->device = DeviceBuffer<BatchEntry>(entries.size());
    upload(entries, found->device.data(), stream);
    found->entries.assign(entries.begin(), entries.end());
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
  };
  std::vector<Array> arrays_;
};

}  // namespace squat::cuda
