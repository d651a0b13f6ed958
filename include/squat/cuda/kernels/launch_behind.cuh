#pragma once

// What launches ask of the device, and programmatic dependent launch from the host's side (its device
// side is in warp.cuh).

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <mutex>

#include "squat/cuda/error.hpp"
#include "squat/cuda/kernels/warpgroup_products.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// What launches ask of the device that is current.
struct DeviceLimits {
  int device = -1;
  int processors = 0;
  int major = 0;              ///< of the compute capability
  int shared_bytes = 0;       ///< that a block may have
  bool by_warpgroup = false;  ///< kernels multiply so on it, see warpgroup_products.cuh
};

/// They are asked for once a thread and device.
inline const DeviceLimits &device_limits() {
  thread_local DeviceLimits limits;
  int device = 0;
  check(cudaGetDevice(&device), "device");
  if (device == limits.device) return limits;
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device), "device");
    return value;
  };
  cudaFuncAttributes probe{};
  check(cudaFuncGetAttributes(&probe, products_probe<void>), "attributes of a kernel");
  limits = {device, ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrComputeCapabilityMajor),
            ask(cudaDevAttrMaxSharedMemoryPerBlockOptin), probe.maxThreadsPerBlock > warp_lanes};
  return limits;
}

/// Lets a kernel have `bytes` of dynamic shared memory, or what was asked for before, by whichever
/// launch, which other threads may be about to launch it with. Not all that there is: what a kernel may
/// take is lost to the caches.
template <auto Kernel>
void allow_shared_bytes(std::size_t bytes) {
  static std::mutex mutex;
  static std::size_t most = 0;
  const std::lock_guard lock(mutex);
  most = std::max(most, bytes);
  check(
      cudaFuncSetAttribute(Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most)),
      "shared memory of a kernel");
}

/// What a launch has found out about a kernel, kept until device or shared memory change.
struct KernelFit {
  int device = -1;
  std::size_t shared = 0;
  int blocks = 0;  ///< that run at a time

  /// Whether it holds; else the caller finds out anew.
  bool holds(const DeviceLimits &limits, std::size_t bytes) const {
    return device == limits.device && shared == bytes;
  }
  template <class Kernel>
  void find(Kernel kernel, int threads, std::size_t bytes, const DeviceLimits &limits) {
    int of_a_processor = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_a_processor, kernel, threads, bytes),
          "occupancy of a kernel");
    device = limits.device;
    shared = bytes;
    blocks = of_a_processor * limits.processors;
  }
};

/// Whether a kernel may start before the one in front of it has ended.
inline bool launches_overlap() { return device_limits().major >= 9; }

/// Launches a kernel behind another of the stream; an error names `what` it was for. overlaps: it may
/// start while the other still runs, and waits for its results itself (wait_for_launches()).
template <class... Parameters, class... Arguments>
void launch_behind(const char *what, void (*kernel)(Parameters...), dim3 grid, int threads,
                   std::size_t shared, cudaStream_t stream, bool overlaps,
                   const Arguments &...arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  const cudaLaunchConfig_t config{.gridDim = grid,
                                  .blockDim = dim3(static_cast<unsigned>(threads)),
                                  .dynamicSmemBytes = shared,
                                  .stream = stream,
                                  .attrs = &attribute,
                                  .numAttrs = overlaps ? 1u : 0u};
  check(cudaLaunchKernelEx(&config, kernel, arguments...), what);
}

}  // namespace squat::cuda
