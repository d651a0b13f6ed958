#pragma once

// The running softmax of a warp's query rows, which are rows of C: of lanes g = lane / 4, each has the
// rows g + 8 i. Weights become A of the sums as they lie.
//
// The reference follows a maximum only when a score exceeds it by `slack`, as in RunningSoftmax: few
// steps need a maximum across lanes, and few rescale sums.

#include <cuda_fp16.h>

#include "squat/cuda/fragments.cuh"
#include "squat/cuda/running_softmax.cuh"
#include "squat/cuda/sum_values.cuh"
#include "squat/cuda/warp.cuh"

namespace squat::cuda {

template <int RowTiles>
class RowSoftmax {
 public:
  static constexpr int rows = 2 * RowTiles;  // of a lane

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < rows; ++i) reference_[i] = RunningSoftmax::nothing;
#pragma unroll
    for (int m = 0; m < RowTiles; ++m)
      weights_[m][0] = weights_[m][1] = weights_[m][2] = weights_[m][3] = 0;
  }

  /// p = 2^(c times the row's unit, less the reference), as float16, for `Columns` tiles of eight
  /// columns; adds to the sums of weights. rescale(factors) where the reference rises. unit: of the
  /// lane's first row, in shared memory.
  template <int Columns, class Rescale>
  __device__ void weights(const float (&c)[RowTiles][Columns][4], const float *unit,
                          Word (&p)[RowTiles][Columns][2], Rescale &&rescale) {
    float units[rows];
#pragma unroll
    for (int i = 0; i < rows; ++i) units[i] = unit[8 * i];
    float largest[rows];
    bool exceeds = false;
#pragma unroll
    for (int i = 0; i < rows; ++i) {
      largest[i] = -INFINITY;
#pragma unroll
      for (int n = 0; n < Columns; ++n) {
        const float *of_row = c[i / 2][n] + i % 2 * 2;
        largest[i] = fmaxf(largest[i], fmaxf(of_row[0], of_row[1]));
      }
      exceeds |= largest[i] * units[i] > reference_[i] + slack;
    }
    if (__any_sync(0xffffffffu, exceeds)) {
      float factors[rows];
#pragma unroll
      for (int i = 0; i < rows; ++i) {
        float most = fmaxf(largest[i], __shfl_xor_sync(0xffffffffu, largest[i], 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        most = fmaxf(reference_[i], most * units[i]);
        factors[i] = power_of_two(reference_[i] - most);
        reference_[i] = most;
        weights_[i / 2][i % 2 * 2] *= factors[i];
      }
      rescale(factors);
    }
#pragma unroll
    for (int m = 0; m < RowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < Columns; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float unit = units[2 * m + j], reference = reference_[2 * m + j];
          p[m][n][j] = halves(power_of_two(c[m][n][2 * j] * unit - reference),
                              power_of_two(c[m][n][2 * j + 1] * unit - reference));
        }
      }
#pragma unroll
      for (int n = 0; n < Columns; n += 2) {
        multiply_add(weights_[m], p[m][n][0], p[m][n][1], p[m][n + 1][0], p[m][n + 1][1], two_ones,
                     two_ones);
      }
    }
  }

  /// The sum of a row's weights, relative to its reference.
  __device__ float weight(int i) const { return weights_[i / 2][i % 2 * 2]; }
  /// The logarithm to base 2 of the sum of 2^score; RunningSoftmax::nothing where no score was seen.
  __device__ float logarithm(int i) const {
    return weight(i) > 0 ? reference_[i] + log2f(weight(i)) : RunningSoftmax::nothing;
  }

 private:
  static constexpr float slack = 8;

  float reference_[rows];
  float weights_[RowTiles][4];  // columns alike
};

}  // namespace squat::cuda
