#pragma once

// Which of several devices a cache and its memory are on. What the runtime does is done on the device
// that is current in the calling thread, and kernels of one device must not be given another's memory.

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <new>
#include <string>

#include "squat/core/error.hpp"
#include "squat/cuda/error.hpp"

namespace squat::cuda {

/// The device that is current in this thread.
inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "device");
  return device;
}

/// Makes a device current in this thread for as long as it lives, and then the one that was before.
/// Where that is the same, it asks and changes nothing.
class DeviceScope {
 public:
  explicit DeviceScope(int device) : DeviceScope(device, std::nothrow) { check(error_, "device"); }
  /// For destructors: what goes wrong is left to the calls that follow.
  DeviceScope(int device, std::nothrow_t) noexcept : error_(cudaGetDevice(&before_)) {
    if (error_ != cudaSuccess || before_ == device) return;
    changes_ = true;
    error_ = cudaSetDevice(device);
  }
  ~DeviceScope() {
    if (changes_) (void)cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope &) = delete;
  DeviceScope &operator=(const DeviceScope &) = delete;

 private:
  int before_ = 0;
  bool changes_ = false;
  cudaError_t error_;
};

/// Throws Error for a stream of another device. The default streams are those of whatever is current. A
/// stream that is being captured cannot be asked: there the runtime refuses the first kernel instead.
inline void check_stream(cudaStream_t stream, int device) {
  if (stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread) return;
  if (is_capturing(stream)) return;
  int found = device;
  check(cudaStreamGetDevice(stream, &found), "stream");
  if (found != device) throw_invalid("stream.device", found, "that of the cache,", device);
}

/// Refuses memory of other devices. An address is asked about once, as long as it comes again: that
/// takes 0.3 us, and a decode step some 8 us of the host.
class MemoryCheck {
 public:
  explicit MemoryCheck(int device) : device_(device) {}

  /// Throws Error for memory of another device. Memory that is no one device's own (managed, or the
  /// host's) is left to who hands it over.
  void operator()(const char *name, const void *data) {
    const void *&known = known_[place(data)];
    if (known == data) return;
    cudaPointerAttributes found{};
    check(cudaPointerGetAttributes(&found, data), name);
    if (found.type == cudaMemoryTypeDevice && found.device != device_)
      throw_invalid(std::string(name) + ".device", found.device, "that of the cache,", device_);
    known = data;
  }

 private:
  static constexpr int place_bits = 8;

  /// Multiplicative hashing (Knuth, The Art of Computer Programming, 6.4).
  static std::size_t place(const void *data) {
    return static_cast<std::size_t>(reinterpret_cast<std::uintptr_t>(data) * 0x9e3779b97f4a7c15u >>
                                    (64 - place_bits));
  }

  int device_;
  std::array<const void *, std::size_t{1} << place_bits> known_{};
};

}  // namespace squat::cuda
