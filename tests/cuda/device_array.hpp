#pragma once

// Device memory of tests, and whether there is a device.

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

namespace squat::test {

inline bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

inline void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

/// Waits for the device; throws what its kernels left behind.
inline void finish() {
  require(cudaGetLastError());
  require(cudaDeviceSynchronize());
}

template <class Element>
class DeviceArray {
 public:
  /// Zeros.
  explicit DeviceArray(std::size_t size) : size_(size) {
    require(cudaMalloc(&data_, (size + 1) * sizeof(Element)));
    require(cudaMemset(static_cast<void *>(data_), 0, size * sizeof(Element)));
  }
  explicit DeviceArray(const std::vector<Element> &elements) : DeviceArray(elements.size()) {
    write(elements);
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray &) = delete;
  DeviceArray &operator=(const DeviceArray &) = delete;

  Element *data() const { return data_; }
  /// They have arrived when it returns: a copy from pageable memory alone may still be on its way, and
  /// streams that do not wait for the default one would not wait for it.
  void write(const std::vector<Element> &elements) {
    require(
        cudaMemcpy(data_, elements.data(), elements.size() * sizeof(Element), cudaMemcpyHostToDevice));
    require(cudaStreamSynchronize(nullptr));
  }
  std::vector<Element> read() const {
    std::vector<Element> elements(size_);
    require(cudaMemcpy(elements.data(), data_, size_ * sizeof(Element), cudaMemcpyDeviceToHost));
    return elements;
  }

 private:
  Element *data_ = nullptr;
  std::size_t size_;
};

}  // namespace squat::test
