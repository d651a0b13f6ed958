#pragma once

// Many pieces of device memory at a time into others, as arguments of a kernel: one launch where as many
// calls of cudaMemcpyAsync would cost the host more than the device.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <span>

#include "squat/cuda/error.hpp"

namespace squat::cuda {

/// `pieces` pieces of 8 bytes, both sides aligned to them. from: null for zeros.
struct PieceCopy {
  const uint2 *from;
  uint2 *to;
  std::size_t pieces;
};

/// As many as a kernel's 4 KiB of arguments hold.
struct PieceCopies {
  static constexpr int most = 3584 / sizeof(PieceCopy);
  PieceCopy copies[most];
};

/// Grid: copies, blocks that share one.
static __global__ void copy_each(PieceCopies copies) {
  const PieceCopy copy = copies.copies[blockIdx.x];
  const std::size_t step = static_cast<std::size_t>(gridDim.y) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.y) * blockDim.x + threadIdx.x; i < copy.pieces;
       i += step) {
    copy.to[i] = copy.from == nullptr ? uint2{} : copy.from[i];
  }
}

/// No piece is read and written.
inline void launch_copy_each(std::span<const PieceCopy> copies, cudaStream_t stream) {
  constexpr auto most = static_cast<std::size_t>(PieceCopies::most);
  constexpr unsigned threads = 256, blocks_of_copy = 16;
  for (; !copies.empty(); copies = copies.subspan(std::min(most, copies.size()))) {
    const std::size_t count = std::min(most, copies.size());
    PieceCopies some{};
    std::copy_n(copies.begin(), count, some.copies);
    copy_each<<<dim3(static_cast<unsigned>(count), blocks_of_copy), threads, 0, stream>>>(some);
    check(cudaGetLastError(), "copy of exact rows");
  }
}

}  // namespace squat::cuda
