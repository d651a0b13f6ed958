#pragma once

// Rows of TailCoding::int8: blocks of 16 tokens of a KV head, rotated (coding/hadamard.hpp).

#include <cuda_fp16.h>

#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// Bytes of a block: keys (rows = tokens), then values (rows = channels), in the order of the tiles of
/// BlockLayout, a byte an element, which counts from 128; then the float16 steps of the 16 keys and of
/// the 16 values.
template <int HeadDim>
struct ByteBlock {
  static constexpr int zero = 128;
  static constexpr int part_bytes = 16 * HeadDim;  // keys, or values
  static constexpr int steps = 2 * part_bytes;
  static constexpr int elements = steps + 2 * 16 * static_cast<int>(sizeof(__half));

  __host__ __device__ static constexpr int key(int token, int channel) {
    return channel / 16 * 256 + tile_element(token, channel % 16);
  }
  __host__ __device__ static constexpr int value(int token, int channel) {
    return part_bytes + channel / 16 * 256 + tile_element(channel % 16, token);
  }
  __host__ __device__ static constexpr int key_step(int token) { return steps + 2 * token; }
  __host__ __device__ static constexpr int value_step(int token) { return steps + 32 + 2 * token; }
};

/// A lane's part of a 16 x 16 tile of bytes, as float16: whole numbers, from -127 to 127.
__device__ inline uint4 byte_halves(uint2 bytes) {
  const auto pair = [](Word word, unsigned order) {  // 1024 + byte, each
    Word both;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(both) : "r"(word), "r"(0x64646464u), "r"(order));
    return as_word(__hsub2(as_halves(both), __float2half2_rn(1024.0f + 128.0f)));
  };
  return {pair(bytes.x, 0x4140), pair(bytes.x, 0x4342), pair(bytes.y, 0x4140), pair(bytes.y, 0x4342)};
}

}  // namespace squat::cuda
