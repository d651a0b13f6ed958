#pragma once

// Elements of tensors and exact rows in device code. T and S are the types the host knows (Eigen's half
// and bfloat16), which device code reads and writes as bits.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "squat/core/config.hpp"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/state/device_state.cuh"

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

/// Writes the S nearest to x.
template <class S>
__device__ inline void store_element(S *to, float x) {
  if constexpr (std::is_same_v<S, float>) {
    *to = x;
  } else {
    *reinterpret_cast<std::uint16_t *>(to) = element_bits<S>(x);
  }
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

/// Eight neighbouring elements of a row, in loads of 16 bytes where `aligned` says that all rows allow
/// it.
template <class S>
class EightElements {
 public:
  /// Zeros.
  __device__ EightElements() : parts_{} {}
  __device__ EightElements(const S *from, bool aligned) {
    if (aligned) {
#pragma unroll
      for (int part = 0; part < parts; ++part)
        parts_[part] = reinterpret_cast<const uint4 *>(from)[part];
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        reinterpret_cast<Bits *>(parts_)[i] = reinterpret_cast<const Bits *>(from)[i];
      }
    }
  }

  __device__ float operator[](int i) const {
    return load_element(reinterpret_cast<const S *>(parts_) + i);
  }

  /// As float16.
  __device__ uint4 halves() const {
    if constexpr (std::is_same_v<S, half>) {
      return parts_[0];
    } else {
      const EightElements &x = *this;
      return {cuda::halves(x[0], x[1]), cuda::halves(x[2], x[3]), cuda::halves(x[4], x[5]),
              cuda::halves(x[6], x[7])};
    }
  }

 private:
  using Bits = std::conditional_t<sizeof(S) == 4, std::uint32_t, std::uint16_t>;
  static constexpr int parts = sizeof(S) / 2;
  uint4 parts_[parts];
};

/// Whether every eighth element of every row lies at a multiple of 16 bytes.
template <class S>
bool rows_aligned(const DeviceTensor<const S> &x) {
  constexpr long long in_piece = 16 / sizeof(S);
  return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && x.token_stride % in_piece == 0 &&
         x.head_stride % in_piece == 0;
}

}  // namespace squat::cuda
