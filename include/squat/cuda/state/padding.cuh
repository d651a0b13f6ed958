#pragma once

// Memory for rows with zeros behind their channels, see cache/padded_rows.hpp.

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>
#include <vector>

#include "squat/core/config.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cuda/error.hpp"
#include "squat/cuda/kernels/elements.cuh"
#include "squat/cuda/state/device_buffer.hpp"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Copies the channels that both have; zeros in the others of `to`. `channels`, `wanted`: of a head of
/// `from` and `to`. An element a thread.
template <class S>
__global__ void copy_channels(DeviceTensor<const S> from, DeviceTensor<S> to, long long rows, int heads,
                              int channels, int wanted) {
  const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * wanted;
       i += step) {
    const long long token = i / wanted / heads;
    const int head = static_cast<int>(i / wanted % heads), channel = static_cast<int>(i % wanted);
    store_element(to.row(token, head) + channel,
                  channel < channels ? load_element(from.row(token, head) + channel) : 0.0f);
  }
}

class Padding {
 public:
  /// Contiguous rows of the extents of `sized`, good until the same place is asked for again. Allocates
  /// where the place was smaller, and waits for the stream then. What captured graphs name stays.
  template <Element S>
  TensorView<S> rows(int place, TensorView<const S> sized, cudaStream_t stream) {
    captured_ |= is_capturing(stream);
    const auto bytes = static_cast<std::size_t>(sized.tokens * sized.heads * sized.head_dim) * sizeof(S);
    DeviceBuffer<std::byte> &memory = memory_[static_cast<std::size_t>(place)];
    if (bytes > memory.bytes()) {
      DeviceBuffer<std::byte> larger(bytes);
      if (captured_) retired_.reserve(retired_.size() + 1);
      check(cudaStreamSynchronize(stream), "padding");
      std::swap(memory, larger);
      if (captured_) retired_.push_back(std::move(larger));
    }
    return {reinterpret_cast<S *>(memory.data()), sized.tokens, sized.heads, sized.head_dim};
  }

  template <Element S>
  void copy(TensorView<const S> from, TensorView<S> to, cudaStream_t stream) const {
    constexpr int threads = 256;
    const long long rows = static_cast<long long>(from.tokens * from.heads);
    const long long blocks = (rows * to.head_dim + threads - 1) / threads;
    if (blocks == 0) return;
    copy_channels<S><<<static_cast<unsigned>(std::min(blocks, 4096ll)), threads, 0, stream>>>(
        {from.data, from.token_stride, from.head_stride}, {to.data, to.token_stride, to.head_stride},
        rows, static_cast<int>(from.heads), static_cast<int>(from.head_dim),
        static_cast<int>(to.head_dim));
    check(cudaGetLastError(), "padding");
  }

  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const auto &memory : memory_) sum += memory.bytes();
    for (const auto &memory : retired_) sum += memory.bytes();
    return sum;
  }

 private:
  std::array<DeviceBuffer<std::byte>, 4> memory_;
  std::vector<DeviceBuffer<std::byte>> retired_;
  bool captured_ = false;  // there are graphs that name them
};

}  // namespace squat::cuda
