#pragma once

// Rows of a sequence and layer that are not packed: sinks, or the tail.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "squat/core/config.hpp"
#include "squat/cuda/page/byte_block.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Blocks of 16 tokens that hold `tokens`.
SQUAT_HOST_DEVICE constexpr std::int32_t token_blocks(Index tokens) {
  return static_cast<std::int32_t>((tokens + 15) / 16);
}

/// Tokens in blocks of 16, each of all KV heads. The first `capacity` stand in a ring, token 0 in slot
/// `first` of it; those behind them, which only a call in progress has, in blocks of their own, one
/// after another.
template <class Element, template <int HeadDim> class Block>
struct RowSlots {
  Element *ring;
  Element *overflow;
  std::int32_t kv_heads;
  std::int32_t capacity;  ///< slots, a multiple of 16
  std::int32_t first;     ///< a multiple of 16

  template <int HeadDim>
  __host__ __device__ static constexpr std::size_t block_bytes() {
    return static_cast<std::size_t>(Block<HeadDim>::elements) * sizeof(Element);
  }

  /// The elements of the block that token `token` stands in, in row token % 16.
  template <int HeadDim>
  __host__ __device__ Element *block(int head, int token) const {
    const bool in_ring = token < capacity;
    int slot = token - capacity;
    if (in_ring) {
      slot = first + token;
      if (slot >= capacity) slot -= capacity;
    }
    const long long offset = static_cast<long long>(slot / 16) * kv_heads + head;
    return (in_ring ? ring : overflow) + offset * Block<HeadDim>::elements;
  }
};

/// Exact rows, elements of 16 bits.
using ExactSlots = RowSlots<std::uint16_t, BlockLayout>;
/// Rows of bytes.
using ByteSlots = RowSlots<std::uint8_t, ByteBlock>;

template <int HeadDim>
__host__ __device__ inline ExactSlots sink_slots(const LayerState &state, int kv_heads) {
  return {state.exact, nullptr, kv_heads, state.sink_blocks * 16, 0};
}

/// The tail, of rows that are Slots.
template <int HeadDim, class Slots = ExactSlots>
__host__ __device__ inline Slots tail_slots(const LayerState &state, int kv_heads) {
  using Element = decltype(Slots::ring);
  const long long sinks =
      static_cast<long long>(state.sink_blocks) * kv_heads * BlockLayout<HeadDim>::elements;
  return {reinterpret_cast<Element>(state.exact + sinks), reinterpret_cast<Element>(state.overflow),
          kv_heads, state.tail_blocks * 16, state.tail_first};
}

/// A tail of bytes as T, for the time of a call: BatchEntry::unpacked.
__host__ __device__ inline ExactSlots unpacked_slots(std::uint16_t *unpacked, int kv_heads) {
  return {unpacked, nullptr, kv_heads, 1 << 30, 0};
}

}  // namespace squat::cuda
