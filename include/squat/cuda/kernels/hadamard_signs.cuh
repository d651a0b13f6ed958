#pragma once

// The signs of the Hadamard rotation, see turns_sign() in coding/hadamard.hpp.

#include <cuda_runtime.h>

namespace squat::cuda {

/// What channel `channel` of a head is multiplied by, 1 or -1.
template <int HeadDim>
__device__ inline float hadamard_sign(int channel) {
  constexpr unsigned block = HeadDim & -HeadDim;
  constexpr bool odd = (block & 0xaaaaaaaau) != 0;  // so is the number of its bits
  const unsigned number = static_cast<unsigned>(channel) % block, pairs = odd ? number >> 3 : number;
  const bool of_three = odd && (number & 7) == 7;
  return of_three != ((__popc(pairs & pairs >> 1 & 0x55u) & 1) != 0) ? -1.0f : 1.0f;
}

}  // namespace squat::cuda
