#pragma once

// Exact rows of a sequence and layer: sinks, or the tail.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/core/config.hpp"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Blocks of 16 tokens that hold `tokens`.
SQUAT_HOST_DEVICE constexpr std::int32_t token_blocks(Index tokens) {
  return static_cast<std::int32_t>((tokens + 15) / 16);
}

/// Tokens in blocks of 16, each of all KV heads (BlockLayout). The first `capacity` stand in a ring,
/// token 0 in slot `first` of it; those behind them, which only a call in progress has, in blocks of
/// their own, one after another.
struct ExactSlots {
  std::uint16_t *ring;
  std::uint16_t *overflow;
  std::int32_t kv_heads;
  std::int32_t capacity;  ///< slots, a multiple of 16
  std::int32_t first;     ///< a multiple of 16

  /// The 16-bit elements of the block that token `token` stands in, in row token % 16.
  template <int HeadDim>
  __host__ __device__ std::uint16_t *block(int head, int token) const {
    const bool in_ring = token < capacity;
    int slot = token - capacity;
    if (in_ring) {
      slot = first + token;
      if (slot >= capacity) slot -= capacity;
    }
    const long long offset = static_cast<long long>(slot / 16) * kv_heads + head;
    return (in_ring ? ring : overflow) + offset * BlockLayout<HeadDim>::elements;
  }
};

template <int HeadDim>
__host__ __device__ inline ExactSlots sink_slots(const LayerState &state, int kv_heads) {
  return {state.exact, nullptr, kv_heads, state.sink_blocks * 16, 0};
}
template <int HeadDim>
__host__ __device__ inline ExactSlots tail_slots(const LayerState &state, int kv_heads) {
  const long long sinks =
      static_cast<long long>(state.sink_blocks) * kv_heads * BlockLayout<HeadDim>::elements;
  return {state.exact + sinks, state.overflow, kv_heads, state.tail_blocks * 16, state.tail_first};
}

}  // namespace squat::cuda
