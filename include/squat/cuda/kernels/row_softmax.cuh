#pragma once

// The running softmax of a warp's query rows, which are columns of C: a lane, t = lane % 4, has columns
// 2t and 2t + 1 of each tile of eight. Weights of tokens in rows become B of the sums by a
// transposition.
//
// The reference follows a maximum only when a score exceeds it by `slack`: few
// steps need a maximum across lanes, and few rescale sums.

#include <cuda_fp16.h>

#include "squat/cuda/kernels/row_sums.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// RowTiles: of 16 query rows.
template <int RowTiles>
class RowSoftmax {
 public:
  static constexpr int columns = 2 * RowTiles;  // tiles of eight query rows
  static constexpr int rows = 2 * columns;      // of a lane: i is row 8 (i / 2) + 2t + i % 2

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < rows; ++i) reference_[i] = no_reference;
#pragma unroll
    for (int m = 0; m < RowTiles; ++m)
      weights_[m][0] = weights_[m][1] = weights_[m][2] = weights_[m][3] = 0;
  }

  /// p = 2^(c times the row's unit, less the reference), as float16, for `Tokens` tiles of 16 tokens;
  /// adds to the sums of weights. rescale(factors) where the reference rises. unit: of the lane's first
  /// row, in shared memory.
  template <int Tokens, class Rescale>
  __device__ void weights(const float (&c)[Tokens][columns][4], const float *unit,
                          Word (&p)[Tokens][columns][2], Rescale &&rescale) {
    float units[rows];
#pragma unroll
    for (int n = 0; n < columns; ++n) {
      const float2 pair = *reinterpret_cast<const float2 *>(unit + 8 * n);
      units[2 * n] = pair.x, units[2 * n + 1] = pair.y;
    }
    float largest[rows];
    bool exceeds = false;
#pragma unroll
    for (int i = 0; i < rows; ++i) {
      largest[i] = -INFINITY;
#pragma unroll
      for (int k = 0; k < Tokens; ++k) {
        largest[i] = fmaxf(largest[i], fmaxf(c[k][i / 2][i % 2], c[k][i / 2][i % 2 + 2]));
      }
      exceeds |= largest[i] * units[i] > reference_[i] + slack;
    }
    if (__any_sync(0xffffffffu, exceeds)) {
      float factors[rows];
#pragma unroll
      for (int i = 0; i < rows; ++i) {
        const float most = fmaxf(reference_[i], largest_row(largest[i]) * units[i]);
        factors[i] = power_of_two(reference_[i] - most);
        reference_[i] = most;
        weights_[i / 4][i % 4] *= factors[i];
      }
      rescale(factors);
    }
#pragma unroll
    for (int k = 0; k < Tokens; ++k) {
#pragma unroll
      for (int n = 0; n < columns; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          p[k][n][j] = transpose(
              halves(power_of_two(c[k][n][2 * j] * units[2 * n] - reference_[2 * n]),
                     power_of_two(c[k][n][2 * j + 1] * units[2 * n + 1] - reference_[2 * n + 1])));
        }
      }
      // Rows 0 to 7 of C count one tile of query rows, rows 8 to 15 the next.
#pragma unroll
      for (int m = 0; m < RowTiles; ++m) {
        multiply_add(weights_[m], two_ones, 0, two_ones, 0, p[k][2 * m][0], p[k][2 * m][1]);
        multiply_add(weights_[m], 0, two_ones, 0, two_ones, p[k][2 * m + 1][0], p[k][2 * m + 1][1]);
      }
    }
  }

  /// The sum of a row's weights, relative to its reference.
  __device__ float weight(int i) const { return weights_[i / 4][i % 4]; }
  /// The logarithm to base 2 of the sum of 2^score; no_reference where no score was seen.
  __device__ float logarithm(int i) const {
    return weight(i) > 0 ? reference_[i] + log2f(weight(i)) : no_reference;
  }

 private:
  static constexpr float slack = 8;

  float reference_[rows];
  float weights_[RowTiles][4];  // rows alike, of each eight
};

}  // namespace squat::cuda
