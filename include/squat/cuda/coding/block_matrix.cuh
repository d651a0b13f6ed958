#pragma once

// Square matrices in shared memory, and what a block does with them.
//
// A block has four threads a column: thread t has column t % Size, and of it every fourth element. Sums
// stay in registers until all of them are there, so that a result may take the place of an operand.

#include <cuda_runtime.h>

namespace squat::cuda {

/// Rows are one element longer than they need be, so that a column is read without bank conflicts.
template <int Size>
struct BlockMatrix {
  static constexpr int stride = Size + 1, floats = Size * stride;
  static constexpr int parts = 4, threads = parts * Size;
  static constexpr int own = Size / parts;  ///< elements of its column that a thread has
  static_assert(Size % parts == 0);

  float *data;

  __device__ float &operator()(int row, int column) const { return data[row * stride + column]; }

  __device__ static int column() { return static_cast<int>(threadIdx.x) % Size; }
  __device__ static int part() { return static_cast<int>(threadIdx.x) / Size; }
  /// Its n-th.
  __device__ static int row(int n) { return part() + parts * n; }

  /// Becomes what the threads have. Begins and ends with barriers.
  __device__ void take(const float (&x)[own]) const {
    __syncthreads();
#pragma unroll
    for (int n = 0; n < own; ++n) (*this)(row(n), column()) = x[n];
    __syncthreads();
  }
};

/// to = a b, where a(i, k) and b(k, j) may be of any matrices.
template <int Size, class A, class B>
__device__ inline void multiply(const BlockMatrix<Size> &to, A &&a, B &&b) {
  using Matrix = BlockMatrix<Size>;
  float sum[Matrix::own] = {};
  const int column = Matrix::column();
#pragma unroll 2
  for (int k = 0; k < Size; ++k) {
    const float right = b(k, column);
#pragma unroll
    for (int n = 0; n < Matrix::own; ++n) sum[n] = fmaf(a(Matrix::row(n), k), right, sum[n]);
  }
  to.take(sum);
}

/// The factor L of a positive definite matrix, L L^T, in its place (Golub and Van Loan, Matrix
/// Computations, section 4.2). What is above the diagonal becomes 0.
template <int Size>
__device__ inline void cholesky(const BlockMatrix<Size> &a) {
  const int thread = static_cast<int>(threadIdx.x), column = a.column();
#pragma unroll 1
  for (int k = 0; k < Size; ++k) {
    __syncthreads();
    const float pivot = sqrtf(a(k, k));
    __syncthreads();
    if (thread >= k && thread < Size) a(thread, k) = thread == k ? pivot : a(thread, k) / pivot;
    __syncthreads();
    if (column <= k) continue;
    const float factor = a(column, k);
#pragma unroll 4
    for (int i = (column / 4) * 4 + a.part(); i < Size; i += a.parts) {
      if (i >= column) a(i, column) -= a(i, k) * factor;
    }
  }
  __syncthreads();
#pragma unroll 4
  for (int n = 0; n < a.own; ++n) {
    if (a.row(n) < column) a(a.row(n), column) = 0;
  }
  __syncthreads();
}

/// Turns a symmetric matrix into a diagonal one, V^T A V, by Jacobi rotations of disjoint pairs of
/// coordinates at a time (Golub and Van Loan, section 8.5), and the columns of v likewise: the
/// eigenvectors, where v was 1. Pairs that are as good as uncorrelated stay, and sweeps end when all
/// are.
template <int Size>
__device__ inline void diagonalize(const BlockMatrix<Size> &a, const BlockMatrix<Size> &v) {
  constexpr int pairs = Size / 2, players = Size - 1, most_sweeps = 16;
  constexpr float small = 1e-6f;
  __shared__ float2 rotations[pairs];  // sines and cosines
  const int thread = static_cast<int>(threadIdx.x), column = a.column();
  // Every two coordinates are a pair in one round of a sweep, as in a tournament.
  const auto pair_of = [](int round, int index) -> int2 {
    if (index == 0) return {players, round};
    const int low = round + index, high = round - index;
    return {low < players ? low : low - players, high < 0 ? high + players : high};
  };
  float trace = 0;
  for (int i = 0; i < Size; ++i) trace += a(i, i);
  const float least = 1e-9f * trace;
  bool goes_on = true;
#pragma unroll 1
  for (int sweep = 0; goes_on && sweep < most_sweeps; ++sweep) {
    bool rotated = false;
#pragma unroll 1
    for (int round = 0; round < players; ++round) {
      __syncthreads();
      if (thread < pairs) {
        const int2 pair = pair_of(round, thread);
        const float of_p = a(pair.x, pair.x), of_q = a(pair.y, pair.y), both = a(pair.x, pair.y);
        float sine = 0, cosine = 1;
        if (fabsf(both) > fmaxf(least, small * sqrtf(fabsf(of_p * of_q)))) {
          const float tau = (of_q - of_p) / (2 * both);
          const float tangent = copysignf(1.0f, tau) / (fabsf(tau) + sqrtf(fmaf(tau, tau, 1)));
          cosine = 1 / sqrtf(fmaf(tangent, tangent, 1));  // to the last bit: errors add up
          sine = tangent * cosine;
          rotated = true;
        }
        rotations[thread] = {sine, cosine};
      }
      __syncthreads();
#pragma unroll 4
      for (int index = a.part(); index < pairs; index += a.parts) {
        const int2 pair = pair_of(round, index);
        const float2 turn = rotations[index];
        const float x = a(pair.x, column), y = a(pair.y, column);
        a(pair.x, column) = turn.y * x - turn.x * y;
        a(pair.y, column) = turn.x * x + turn.y * y;
      }
      __syncthreads();
#pragma unroll 2
      for (int index = a.part(); index < pairs; index += a.parts) {
        const int2 pair = pair_of(round, index);
        const float2 turn = rotations[index];
        const auto rotate = [&](const BlockMatrix<Size> &m) {
          const float x = m(column, pair.x), y = m(column, pair.y);
          m(column, pair.x) = turn.y * x - turn.x * y;
          m(column, pair.y) = turn.x * x + turn.y * y;
        };
        rotate(a);
        rotate(v);
      }
    }
    goes_on = __syncthreads_or(rotated ? 1 : 0) != 0;
  }
}

/// The columns of v become L^-T times them, L lower triangular, [row, column] = l(row, column).
template <int Size, class L>
__device__ inline void solve_transposed(L &&l, const BlockMatrix<Size> &v) {
  const int column = v.column();
#pragma unroll 1
  for (int j = Size - 1; j >= 0; --j) {
    const float x = v(j, column) / l(j, j);
    __syncthreads();
    if (v.part() == 0) v(j, column) = x;
#pragma unroll 4
    for (int i = v.part(); i < j; i += v.parts) v(i, column) = fmaf(-x, l(j, i), v(i, column));
    __syncthreads();
  }
}

}  // namespace squat::cuda
