#pragma once

// Tensors from the host's memory: what the host works out itself.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#include "squat/config.hpp"
#include "squat/cuda/error.hpp"
#include "squat/tensor.hpp"

namespace squat::cuda {

/// A contiguous copy of a tensor in the host's memory.
template <class Scalar>
struct HostTensor {
  HostTensor(Index tokens, Index heads, Index head_dim)
      : elements(static_cast<std::size_t>(tokens * heads * head_dim)),
        shape(nullptr, tokens, heads, head_dim) {}

  TensorView<Scalar> view() {
    TensorView<Scalar> whole = shape;
    whole.data = elements.data();
    return whole;
  }

  std::vector<Scalar> elements;
  TensorView<Scalar> shape;
};

/// Copies a tensor of the same shape, a head at a time.
template <class Scalar>
void copy_tensor(TensorView<const Scalar> from, TensorView<Scalar> to, cudaMemcpyKind kind,
                 cudaStream_t stream) {
  const std::size_t width = static_cast<std::size_t>(from.head_dim) * sizeof(Scalar);
  const auto pitch = [&](Index stride) {
    return from.tokens > 1 ? static_cast<std::size_t>(stride) * sizeof(Scalar) : width;
  };
  for (Index head = 0; head < from.heads && from.tokens > 0; ++head) {
    check(cudaMemcpy2DAsync(to.row(0, head), pitch(to.token_stride), from.row(0, head),
                            pitch(from.token_stride), width, static_cast<std::size_t>(from.tokens), kind,
                            stream),
          "copy of a tensor");
  }
}

}  // namespace squat::cuda
