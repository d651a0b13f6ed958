#pragma once

// Device memory of the benchmarks, and the check of every CUDA call.

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>

namespace bench {

inline void check(cudaError_t error, const char *what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

/// `count` elements in device memory, all bits zero.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(std::size_t count) : count_(count) {
    T *data = nullptr;
    check(cudaMalloc(&data, bytes()), "cudaMalloc");
    data_.reset(data);
    check(cudaMemset(data, 0, bytes()), "cudaMemset");
    check(cudaStreamSynchronize(nullptr), "cudaMemset");  // streams of ours do not wait for that one
  }

  T *data() const { return data_.get(); }
  std::size_t size() const { return count_; }
  std::size_t bytes() const { return count_ * sizeof(T); }

 private:
  struct Free {
    void operator()(T *data) const { cudaFree(data); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t count_ = 0;
};

}  // namespace bench
