#pragma once

// Programmatic dependent launch from the host's side (its device side is in warp.cuh).

#include <cuda_runtime.h>

#include <cstddef>

#include "squat/cuda/error.hpp"

namespace squat::cuda {

/// Launches a kernel behind another of the stream; overlaps: before that has ended, for what it does
/// before it waits.
template <class... Parameters, class... Arguments>
void launch_behind(void (*kernel)(Parameters...), int blocks, int threads, std::size_t shared,
                   cudaStream_t stream, bool overlaps, const Arguments &...arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  const cudaLaunchConfig_t config{.gridDim = dim3(static_cast<unsigned>(blocks)),
                                  .blockDim = dim3(static_cast<unsigned>(threads)),
                                  .dynamicSmemBytes = shared,
                                  .stream = stream,
                                  .attrs = &attribute,
                                  .numAttrs = overlaps ? 1u : 0u};
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "attend");
}

}  // namespace squat::cuda
