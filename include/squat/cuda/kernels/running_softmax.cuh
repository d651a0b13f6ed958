#pragma once

// The running softmax of a warp's columns.
//
// Weights are powers of two of scores less a reference, pairs of float16 with tokens in rows as the
// scores' C has them. The reference is a maximum of scores seen so far, and follows only when a score
// exceeds it by `slack`: most pages then need no maximum across lanes, and no sum is rescaled.

#include <cuda_fp16.h>

#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

class RunningSoftmax {
 public:
  __device__ void clear() { reference_[0] = reference_[1] = nothing; }

  /// What weights and their sums are relative to, a power of two. `nothing` where no score was seen.
  __device__ float reference(int i) const { return reference_[i]; }
  static constexpr float nothing = -1e30f;

  /// weights = 2^(c times the columns' factors, less the reference). Sums are rescaled where that rises.
  /// Fine: the powers in single precision; else in float16, whose rounding of the exponent makes an
  /// error of 2^-9 at 2^-8 of the largest weight.
  template <bool Fine, int Tiles, class Sums>
  __device__ void operator()(const float (&c)[Tiles][4], float2 factors, Sums &sums,
                             TokenWeights (&weights)[Tiles]) {
    // Not 0, which would make a masked score no number.
    const float factor[2] = {fmaxf(factors.x, 0x1p-126f), fmaxf(factors.y, 0x1p-126f)};
    const auto pairs = [&] {
      __half2 largest = __float2half2_rn(-INFINITY);
#pragma unroll
      for (int tile = 0; tile < Tiles; ++tile) {
        weights[tile] = {pair(c[tile][0], c[tile][1], factor), pair(c[tile][2], c[tile][3], factor)};
        largest = __hmax2(largest, __hmax2(as_halves(weights[tile].x), as_halves(weights[tile].y)));
      }
      return largest;
    };
    const __half2 largest = pairs();
    if (__any_sync(0xffffffffu, !__hble2(largest, __float2half2_rn(slack)))) {
      raise(c, factor, sums);
      pairs();
    }
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) {
      if constexpr (Fine) {
        weights[tile] = {powers(c[tile][0], c[tile][1], factor), powers(c[tile][2], c[tile][3], factor)};
      } else {
        weights[tile] = {powers(weights[tile].x), powers(weights[tile].y)};
      }
    }
  }

 private:
  static constexpr float slack = 8;

  __device__ float exponent(float c, const float (&factor)[2], int i) const {
    return c * factor[i] - reference_[i];
  }
  __device__ Word pair(float c0, float c1, const float (&factor)[2]) const {
    return halves(exponent(c0, factor, 0), exponent(c1, factor, 1));
  }
  __device__ Word powers(float c0, float c1, const float (&factor)[2]) const {
    return halves(power_of_two(exponent(c0, factor, 0)), power_of_two(exponent(c1, factor, 1)));
  }
  __device__ static Word powers(Word x) {
    Word y;
    asm("ex2.approx.f16x2 %0, %1;" : "=r"(y) : "r"(x));
    return y;
  }

  template <int Tiles, class Sums>
  __device__ void raise(const float (&c)[Tiles][4], const float (&factor)[2], Sums &sums) {
    float rescale[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float largest = -INFINITY;
#pragma unroll
      for (int tile = 0; tile < Tiles; ++tile) {
        largest = fmaxf(largest, fmaxf(c[tile][i], c[tile][i + 2]));
      }
      largest = fmaxf(reference_[i], largest_row(largest) * factor[i]);
      rescale[i] = power_of_two(reference_[i] - largest);
      reference_[i] = largest;
    }
    sums.multiply(rescale[0], rescale[1]);
  }

  float reference_[2];
};

}  // namespace squat::cuda
