#pragma once

// A few structures at a time into device memory, as arguments of a kernel: no staging, no waiting.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <span>

#include "squat/cuda/error.hpp"

namespace squat::cuda {

/// A structure and where it goes.
template <class Value>
struct Write {
  Value *to;
  Value value;
};

/// As many as a kernel's 4 KiB of arguments hold.
template <class Value>
struct Writes {
  static constexpr int most = 3584 / sizeof(Write<Value>);
  int count;
  Write<Value> writes[most];
};

template <class Value>
__global__ void write_each(Writes<Value> writes) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < writes.count) *writes.writes[i].to = writes.writes[i].value;
}

template <class Value>
void launch_write_each(std::span<const Write<Value>> writes, cudaStream_t stream) {
  constexpr auto most = static_cast<std::size_t>(Writes<Value>::most);
  for (; !writes.empty(); writes = writes.subspan(std::min(most, writes.size()))) {
    const std::size_t count = std::min(most, writes.size());
    Writes<Value> some{.count = static_cast<int>(count), .writes = {}};
    std::copy_n(writes.begin(), count, some.writes);
    write_each<Value><<<1, Writes<Value>::most, 0, stream>>>(some);
    check(cudaGetLastError(), "write of sequence states");
  }
}

}  // namespace squat::cuda
