#pragma once

// A lane's part of a 16 x 16 tile of exact numbers, as float16.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "squat/core/config.hpp"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

template <class T>
struct ExactTile;

template <>
struct ExactTile<half> {
  uint4 words;
  __device__ uint4 halves() const { return words; }
};

template <>
struct ExactTile<bfloat16> {
  uint4 words;
  /// What the cache holds is within float16's range.
  __device__ uint4 halves() const {
    return {convert(words.x), convert(words.y), convert(words.z), convert(words.w)};
  }

 private:
  __device__ static Word convert(Word pair) {
    return cuda::halves(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  }
};

/// A lane's part of the first `Count` tiles of 16 exact rows, in registers.
template <class T, int Count>
struct FetchedTiles {
  ExactTile<T> tiles[Count > 0 ? Count : 1];

  __device__ explicit FetchedTiles(const ExactTile<T> *from) {
#pragma unroll
    for (int i = 0; i < Count; ++i)
      tiles[i].words = read_once(&from[i * warp_lanes + lane_index()].words);
  }
  __device__ uint4 halves(int tile) const { return tiles[tile].halves(); }
};

/// The type in device code of an element the host knows as Eigen's.
template <class T>
struct DeviceElement {
  using Type = T;
};
template <>
struct DeviceElement<half> {
  using Type = __half;
};
template <>
struct DeviceElement<bfloat16> {
  using Type = __nv_bfloat16;
};
template <class T>
using DeviceElementOf = typename DeviceElement<T>::Type;

}  // namespace squat::cuda
