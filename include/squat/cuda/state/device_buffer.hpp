#pragma once

// Memory of the CUDA backend.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <type_traits>

#include "squat/cuda/error.hpp"
#include "squat/cuda/state/device_scope.hpp"

namespace squat::cuda {

/// Asked before every piece of device memory is handed out; true refuses it, as if there were no more:
/// for tests, and for engines that keep a budget. Null asks nobody.
inline bool (*refuses_device_memory)(std::size_t bytes) = nullptr;

/// Throws Error where the hook refuses.
inline void ask_for_device_memory(std::size_t bytes) {
  if (refuses_device_memory != nullptr && refuses_device_memory(bytes)) {
    throw Error("squat: allocation of " + std::to_string(bytes) + " bytes of device memory was refused");
  }
}

/// `size` elements of trivial type in memory of the device that is current, uninitialised. An allocation
/// that fails is an Error.
template <class Scalar>
class DeviceBuffer {
  static_assert(std::is_trivially_copyable_v<Scalar>);

 public:
  /// Bytes of pages that are worth an allocation.
  static constexpr std::size_t slab_bytes = std::size_t{16} << 20;

  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t size) : size_(size) {
    if (size == 0) return;
    ask_for_device_memory(bytes());
    const int device = current_device();
    void *data = nullptr;
    const cudaError_t error = cudaMalloc(&data, bytes());
    if (error != cudaSuccess) {
      check(error, "allocation of " + std::to_string(bytes()) + " bytes of device memory");
    }
    data_ = {static_cast<Scalar *>(data), Release{device}};
  }

  Scalar *data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return size_ * sizeof(Scalar); }

  /// Sets every byte.
  void fill(int byte, cudaStream_t stream) const {
    if (size_ > 0) check(cudaMemsetAsync(data(), byte, bytes(), stream), "fill");
  }

 private:
  struct Release {
    int device = 0;
    void operator()(Scalar *data) const {
      const DeviceScope scope(device, std::nothrow);
      (void)cudaFree(data);
    }
  };
  std::unique_ptr<Scalar, Release> data_;
  std::size_t size_ = 0;
};

/// Copies from the host's memory. It is read before this returns: the runtime stages memory that is not
/// pinned.
template <class Scalar>
void upload(std::span<const Scalar> from, Scalar *to, cudaStream_t stream) {
  if (from.empty()) return;
  check(cudaMemcpyAsync(to, from.data(), from.size_bytes(), cudaMemcpyHostToDevice, stream), "upload");
}

/// Copies to the host's memory, and waits for it.
template <class Scalar>
void download(const Scalar *from, std::span<Scalar> to, cudaStream_t stream) {
  if (!to.empty()) {
    check(cudaMemcpyAsync(to.data(), from, to.size_bytes(), cudaMemcpyDeviceToHost, stream), "download");
  }
  check(cudaStreamSynchronize(stream), "download");
}

}  // namespace squat::cuda
