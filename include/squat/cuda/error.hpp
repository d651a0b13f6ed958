#pragma once

// What the CUDA runtime reports, as squat::Error.

#include <cuda_runtime_api.h>

#include <string>
#include <string_view>

#include "squat/core/error.hpp"

namespace squat::cuda {

/// Whether a context that met this error fails for good.
inline bool is_sticky(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
      return true;
    default:
      return false;
  }
}

/// Throws Error with the place and the runtime's text, unless all is well.
inline void check(cudaError_t error, std::string_view place) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // what is not sticky ends here
  std::string text = "squat: " + std::string(place) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorInvalidResourceHandle)
    text += "; stream may be of another device than the cache";
  if (is_sticky(error))
    text += "; the device's context has failed, and the cache is not usable any more";
  throw Error(text);
}

/// Whether a stream records what it is given instead of working.
inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "stream");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace squat::cuda
