#pragma once

// Device memory of the example engine, and the check of every CUDA call.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>

namespace engine::cuda {

inline void check(cudaError_t error, const char *what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

/// Elements in device memory.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(std::size_t count) { reserve(count); }
  explicit DeviceArray(std::span<const T> elements) : DeviceArray(elements.size()) {
    check(cudaMemcpy(data(), elements.data(), elements.size_bytes(), cudaMemcpyHostToDevice),
          "cudaMemcpy");
  }

  T *data() const { return data_.get(); }
  std::size_t size() const { return count_; }

  /// Room for `count` elements. What was there is lost where it has to grow.
  void reserve(std::size_t count) {
    if (count <= count_) return;
    data_.reset();
    void *data = nullptr;
    check(cudaMalloc(&data, count * sizeof(T)), "cudaMalloc");
    data_.reset(static_cast<T *>(data));
    count_ = count;
  }

 private:
  struct Free {
    void operator()(T *data) const { cudaFree(data); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t count_ = 0;
};

}  // namespace engine::cuda
