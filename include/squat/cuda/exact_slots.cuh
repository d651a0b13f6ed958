#pragma once

// Exact rows of a sequence and layer: sinks, or the ring of the tail.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/cuda/device_state.cuh"
#include "squat/cuda/page_layout.cuh"

namespace squat::cuda {

/// Tokens in BlockLayout blocks [kv_heads, blocks]. Token i stands in slot (first + i) % capacity of
/// those behind block `first_block` of each head.
struct ExactSlots {
  void *data;
  std::int32_t blocks;  ///< of a head
  std::int32_t first_block;
  std::int32_t capacity;  ///< slots, a multiple of 16
  std::int32_t first;

  __host__ __device__ int slot(int token) const { return (first + token) % capacity; }

  /// The 16-bit elements of the block of a slot.
  template <int HeadDim>
  __device__ std::uint16_t *block(int head, int slot) const {
    const long long index = static_cast<long long>(head) * blocks + first_block + slot / 16;
    return static_cast<std::uint16_t *>(data) + index * BlockLayout<HeadDim>::elements;
  }
};

__host__ __device__ inline ExactSlots sink_slots(const LayerState &state) {
  return {state.exact, state.blocks(), 0, state.sink_blocks * 16, 0};
}
__host__ __device__ inline ExactSlots tail_slots(const LayerState &state) {
  return {state.exact, state.blocks(), state.sink_blocks, state.tail_blocks * 16, state.tail_first};
}

}  // namespace squat::cuda
