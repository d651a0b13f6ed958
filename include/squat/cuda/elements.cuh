#pragma once

// Elements of tensors and exact rows in device code. T and S are the types the host knows (Eigen's half
// and bfloat16), which device code reads and writes as bits.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "squat/config.hpp"
#include "squat/cuda/fragments.cuh"

namespace squat::cuda {

/// The largest magnitude of a query, key or value, as in cache/check.hpp.
inline constexpr float largest_magnitude = 65504.0f;

/// False for infinity and NaN too.
__device__ inline bool in_range(float x) { return fabsf(x) <= largest_magnitude; }

template <class S>
__device__ inline float load_element(const S *from) {
  if constexpr (std::is_same_v<S, float>) {
    return *from;
  } else {
    const auto bits = *reinterpret_cast<const std::uint16_t *>(from);
    if constexpr (std::is_same_v<S, half>)
      return __half2float(__ushort_as_half(bits));
    else
      return __uint_as_float(static_cast<Word>(bits) << 16);
  }
}

/// The bits of T nearest to x.
template <class T>
__device__ inline std::uint16_t element_bits(float x) {
  static_assert(std::is_same_v<T, half> || std::is_same_v<T, bfloat16>,
                "squat: exact rows on CUDA are half or bfloat16");
  if constexpr (std::is_same_v<T, half>)
    return __half_as_ushort(__float2half_rn(x));
  else
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

template <class T>
__device__ inline float element_value(std::uint16_t bits) {
  return load_element(reinterpret_cast<const T *>(&bits));
}

/// Two elements of a word, the low half first.
template <class T>
__device__ inline float2 word_values(Word word) {
  return {element_value<T>(static_cast<std::uint16_t>(word)),
          element_value<T>(static_cast<std::uint16_t>(word >> 16))};
}
template <class T>
__device__ inline Word word_of(float low, float high) {
  return element_bits<T>(low) | static_cast<Word>(element_bits<T>(high)) << 16;
}

}  // namespace squat::cuda
