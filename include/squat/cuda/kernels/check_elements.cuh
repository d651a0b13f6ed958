#pragma once

// The check at the door: elements that are not finite or out of range.

#include <cuda_runtime.h>

#include <algorithm>

#include "squat/cuda/kernels/elements.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// What *first_bad holds while every element is in range.
inline constexpr unsigned long long none_bad = ~0ull;

/// Lowers *first_bad to (token * heads + head) * head_dim + channel of the first element that is not
/// finite or beyond float16's range. Eight channels a thread, in one load of 16 bytes or two where every
/// row is aligned.
template <class S>
__global__ void count_bad(DeviceTensor<const S> x, long long tokens, int heads, int head_dim,
                          bool aligned, unsigned long long *first_bad) {
  const int eighths = head_dim / 8;
  const long long pieces = tokens * heads * eighths;
  const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < pieces;
       i += step) {
    const long long row = i / eighths;
    const S *from = x.row(row / heads, static_cast<int>(row % heads)) + i % eighths * 8;
    const EightElements<S> elements(from, aligned);
    int bad = 8;
#pragma unroll
    for (int channel = 7; channel >= 0; --channel) {
      if (!in_range(elements[channel])) bad = channel;
    }
    if (bad < 8) atomicMin(first_bad, static_cast<unsigned long long>(i) * 8 + bad);
  }
}

/// *first_bad: none_bad, or what an earlier call left there.
template <class S>
void launch_count_bad(DeviceTensor<const S> x, long long tokens, int heads, int head_dim,
                      unsigned long long *first_bad, cudaStream_t stream) {
  if (tokens == 0) return;
  const long long blocks = (tokens * heads * (head_dim / 8) + 255) / 256;
  count_bad<S><<<static_cast<unsigned>(std::min(blocks, 2048ll)), 256, 0, stream>>>(
      x, tokens, heads, head_dim, rows_aligned(x), first_bad);
}

}  // namespace squat::cuda
