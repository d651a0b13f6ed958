#pragma once

// Square matrices in the registers of a block, and what needs no more than columns: nobody waits for
// another column but where the next step of all is in it.

#include <cuda_runtime.h>

#include "squat/cuda/kernels/warp.cuh"

namespace squat::cuda {

__device__ inline float dot(float4 a, float4 b, float sum) {
  return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
}
/// x += factor y.
__device__ inline void add_scaled(float4 &x, float factor, float4 y) {
  x = {fmaf(factor, y.x, x.x), fmaf(factor, y.y, x.y), fmaf(factor, y.z, x.z), fmaf(factor, y.w, x.w)};
}

/// Number i, known at compile time.
__device__ inline float &element(float4 &x, int i) {
  return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}

/// What a thread has of a matrix. Four lanes side by side have a column: rows in fours, and of those
/// every fourth. Vectors stand in shared memory, aligned to 16 bytes, so that the lanes of a warp read
/// 64 bytes of one at a time.
template <int Size>
struct ColumnQuarter {
  static constexpr int lanes = 4, quads = Size / 16, threads = lanes * Size;
  static_assert(Size % 32 == 0);

  float4 x[quads];

  __device__ static int column() { return static_cast<int>(threadIdx.x) / lanes; }
  __device__ static int part() { return static_cast<int>(threadIdx.x) % lanes; }
  /// The first of the four of a quad.
  __device__ static int row(int quad) { return 4 * (part() + lanes * quad); }
  /// Of a vector.
  __device__ static float4 &of(float *vector, int quad) {
    return reinterpret_cast<float4 *>(vector)[part() + lanes * quad];
  }
  __device__ static float4 of(const float *vector, int quad) {
    return reinterpret_cast<const float4 *>(vector)[part() + lanes * quad];
  }

  /// x(row, column) for all of its rows.
  template <class X>
  __device__ void fill(X &&entry) {
#pragma unroll
    for (int n = 0; n < quads; ++n) {
      const int i = row(n), j = column();
      x[n] = {entry(i, j), entry(i + 1, j), entry(i + 2, j), entry(i + 3, j)};
    }
  }
};

/// Over the lanes of a column, the same for all.
template <class Real, class Operation>
__device__ inline Real reduce_column(Real x, Operation operation) {
  x = operation(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return operation(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
template <class Real>
__device__ inline Real sum_of_column(Real x) {
  return reduce_column(x, [](Real a, Real b) { return a + b; });
}

/// The factor L of a positive definite matrix, L L^T (Golub and Van Loan, Matrix Computations, section
/// 4.2): its columns become rows of `factor`, [Size, Size] in shared memory, zeros included. A column
/// is finished by its own lanes, and what the others take off theirs is what they read of it. Roots are
/// drawn in the end, where nobody waits for one: until then a column is as many times L's as L's
/// diagonal says.
template <int Size>
__device__ inline void cholesky(ColumnQuarter<Size> &a, float *factor) {
  const int column = a.column();
#pragma unroll 1
  for (int k = 0; k < Size; ++k) {
    float *of_k = factor + k * Size;
    if (column == k) {
#pragma unroll
      for (int n = 0; n < a.quads; ++n) a.of(of_k, n) = a.x[n];
    }
    __syncthreads();
    if (column <= k) continue;
    const float part = of_k[column] * reciprocal(of_k[k]);
#pragma unroll
    for (int n = 0; n < a.quads; ++n) {
      if (16 * n + 15 > k) add_scaled(a.x[n], -part, a.of(of_k, n));
    }
  }
  __syncthreads();
  float *of_own = factor + column * Size;
  const float inverse = 1 / sqrtf(of_own[column]);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < a.quads; ++n) {
    const int above = column - a.row(n);  // rows of the four that are zero
    const float4 x = a.x[n];
    a.of(of_own, n) = {above > 0 ? 0 : x.x * inverse, above > 1 ? 0 : x.y * inverse,
                       above > 2 ? 0 : x.z * inverse, above > 3 ? 0 : x.w * inverse};
  }
  __syncthreads();
}

/// The columns of x become L^-T times them. l: rows of L in shared memory, `stride` floats each, a
/// multiple of 4, with zeros on the diagonal; what the diagonal was is inverted in inverse(row).
template <int Size, class Inverse>
__device__ inline void solve_transposed(const float *l, int stride, Inverse &&inverse,
                                        ColumnQuarter<Size> &x) {
  // From the last row up. A row is known once those below are taken off; the lane that has it passes it
  // to the others of its column.
  const int first_lane = lane_index() / x.lanes * x.lanes;
#pragma unroll
  for (int n = x.quads - 1; n >= 0; --n) {
#pragma unroll 1
    for (int owner = x.lanes - 1; owner >= 0; --owner) {
#pragma unroll
      for (int i = 3; i >= 0; --i) {
        const int row = 4 * (owner + x.lanes * n) + i;
        float &own = element(x.x[n], i);
        const float known = __shfl_sync(0xffffffffu, own * inverse(row), first_lane + owner);
        if (x.part() == owner) own = known;
#pragma unroll
        for (int m = 0; m <= n; ++m) add_scaled(x.x[m], -known, x.of(l + row * stride, m));
      }
    }
  }
}

}  // namespace squat::cuda
