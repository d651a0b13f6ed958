#pragma once

// What memory does at most, measured once a process: the measure of every other figure.

#include "stopwatch.cuh"

namespace bench {

inline constexpr std::size_t copied_bytes = std::size_t{1} << 30;

/// Of a copy from device to device.
inline const Times &copy_times() {
  static const Times times = [] {
    Stopwatch stopwatch;
    const DeviceBuffer<char> from(copied_bytes), to(copied_bytes);
    return stopwatch.time([&] {
      check(cudaMemcpyAsync(to.data(), from.data(), copied_bytes, cudaMemcpyDeviceToDevice,
                            stopwatch.stream()),
            "cudaMemcpyAsync");
    });
  }();
  return times;
}

/// Bytes a second, read plus written.
inline double copy_bandwidth() { return 2.0 * copied_bytes / copy_times().median(); }

}  // namespace bench
