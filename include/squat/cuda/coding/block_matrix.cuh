#pragma once

// Square matrices in shared memory, and how a block multiplies them.

#include <cuda_runtime.h>

#include "squat/cuda/kernels/warp.cuh"

namespace squat::cuda {

/// Rows are one element longer than they need be, so that a column is read without bank conflicts. Of a
/// matrix a warp has eight rows, and a lane every 32nd column of them: of a product, twelve elements of
/// the factors make 32 terms.
template <int Size>
struct BlockMatrix {
  static constexpr int stride = Size + 1, floats = Size * stride;
  static constexpr int rows = 8, columns = Size / warp_lanes;  ///< of a thread
  static constexpr int own = rows * columns, threads = Size * Size / own;
  static_assert(Size % warp_lanes == 0);

  float *data;

  __device__ float &operator()(int row, int column) const { return data[row * stride + column]; }

  __device__ static int first_row() { return rows * warp_index(); }
  /// Of the thread's n-th element.
  __device__ static int row(int n) { return first_row() + n % rows; }
  __device__ static int column(int n) { return lane_index() + warp_lanes * (n / rows); }

  /// Becomes what the threads have. Begins and ends with barriers.
  __device__ void take(const float (&x)[own]) const {
    __syncthreads();
#pragma unroll
    for (int n = 0; n < own; ++n) (*this)(row(n), column(n)) = x[n];
    __syncthreads();
  }
};

/// sum += of_rows of_columns^T.
template <int Size, class Real>
__device__ inline void add_outer_product(Real (&sum)[BlockMatrix<Size>::own],
                                         const Real (&of_rows)[BlockMatrix<Size>::rows],
                                         const Real (&of_columns)[BlockMatrix<Size>::columns]) {
  constexpr int rows = BlockMatrix<Size>::rows;
#pragma unroll
  for (int n = 0; n < BlockMatrix<Size>::own; ++n) sum[n] += of_rows[n % rows] * of_columns[n / rows];
}

/// to = a b, where a(i, k) and b(k, j) may be of any matrices; a is 0 for a warp's rows but where first
/// <= k < end. Sums stay in registers until all of them are there, so that `to` may be an operand.
template <int Size, class A, class B>
__device__ inline void multiply(const BlockMatrix<Size> &to, A &&a, B &&b, int first = 0,
                                int end = Size) {
  using Matrix = BlockMatrix<Size>;
  float sum[Matrix::own] = {};
#pragma unroll 2
  for (int k = first; k < end; ++k) {
    float of_rows[Matrix::rows], of_columns[Matrix::columns];
#pragma unroll
    for (int n = 0; n < Matrix::rows; ++n) of_rows[n] = a(Matrix::row(n), k);
#pragma unroll
    for (int n = 0; n < Matrix::columns; ++n) of_columns[n] = b(k, Matrix::column(n * Matrix::rows));
    add_outer_product<Size>(sum, of_rows, of_columns);
  }
  to.take(sum);
}

}  // namespace squat::cuda
