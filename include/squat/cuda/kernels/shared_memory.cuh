#pragma once

// Shared memory by addresses of 32 bits: these are a register and a constant, so that what is the same
// for all threads of a team need take no registers.

#include <cstddef>
#include <cstdint>

#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

extern __shared__ __align__(128) std::uint8_t block_bytes[];

__device__ inline Word shared_address(const void *shared) {
  return static_cast<Word>(__cvta_generic_to_shared(shared));
}

template <class Item>
__device__ inline Item &shared_at(int address) {
  return *static_cast<Item *>(__cvta_shared_to_generic(static_cast<std::size_t>(address)));
}

/// x, of which the compiler knows nothing: what is computed of it is computed where it is used, and not
/// kept in registers across a loop.
__device__ inline int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

/// Where the block's memory begins.
__device__ inline int shared_base() { return opaque(static_cast<int>(shared_address(block_bytes))); }

}  // namespace squat::cuda
