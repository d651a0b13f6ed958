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

/// A rotation of two coordinates, as a round of diagonalize() works it out.
struct alignas(16) PlaneRotation {
  float sine, cosine;
  int p, q;

  __device__ bool rotates() const { return sine != 0; }
  __device__ void turn(float &x, float &y) const {
    const float before = x;
    x = cosine * before - sine * y;
    y = sine * before + cosine * y;
  }
};

/// Turns a symmetric matrix into a diagonal one, V^T A V, by Jacobi rotations of disjoint pairs of
/// coordinates at a time (Golub and Van Loan, section 8.5), and the rows of v likewise: the
/// eigenvectors, where v was 1. Pairs that are as good as uncorrelated stay, and sweeps end when all
/// are. Of the matrix only what is on and below the diagonal is kept: what two pairs have in common,
/// four elements, is turned from both sides at once, and the diagonal takes what its own pair gives it,
/// so that eigenvalues err by a millionth of the largest. v: [Size, Size], aligned to 16 bytes.
template <int Size>
__device__ inline void diagonalize(const BlockMatrix<Size> &a, float *v) {
  constexpr int pairs = Size / 2, players = Size - 1, most_sweeps = 16;
  constexpr int quads = Size / 4;  // of a row
  constexpr float small = 1e-6f;
  __shared__ PlaneRotation rotations[pairs];
  const int thread = static_cast<int>(threadIdx.x);
  const auto at = [&](int i, int j) -> float & { return a(max(i, j), min(i, j)); };
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
        const float of_p = a(pair.x, pair.x), of_q = a(pair.y, pair.y), both = at(pair.x, pair.y);
        float sine = 0, cosine = 1;
        if (fabsf(both) > fmaxf(least, small * sqrtf(fabsf(of_p * of_q)))) {
          const float tau = (of_q - of_p) / (2 * both);
          const float tangent = copysignf(1.0f, tau) / (fabsf(tau) + sqrtf(fmaf(tau, tau, 1)));
          cosine = 1 / sqrtf(fmaf(tangent, tangent, 1));  // to the last bit: errors add up
          sine = tangent * cosine;
          a(pair.x, pair.x) = fmaf(-tangent, both, of_p);
          a(pair.y, pair.y) = fmaf(tangent, both, of_q);
          at(pair.x, pair.y) = 0;
          rotated = true;
        }
        rotations[thread] = {sine, cosine, pair.x, pair.y};
      }
      __syncthreads();
      // Two pairs, i < j: line i has pairs - 1 - i of them, and with line pairs - 2 - i `pairs`.
#pragma unroll 1
      for (int n = thread; n < pairs * (pairs - 1) / 2; n += a.threads) {
        const int line = n / pairs, place = n % pairs, of_line = pairs - 1 - line;
        const int i = place < of_line ? line : pairs - 2 - line;
        const int j = i + 1 + (place < of_line ? place : place - of_line);
        const PlaneRotation first = rotations[i], second = rotations[j];
        if (!first.rotates() && !second.rotates()) continue;
        float &pp = at(first.p, second.p), &pq = at(first.p, second.q);
        float &qp = at(first.q, second.p), &qq = at(first.q, second.q);
        float x[2][2] = {{pp, pq}, {qp, qq}};
        first.turn(x[0][0], x[1][0]);
        first.turn(x[0][1], x[1][1]);
        second.turn(x[0][0], x[0][1]);
        second.turn(x[1][0], x[1][1]);
        pp = x[0][0], pq = x[0][1], qp = x[1][0], qq = x[1][1];
      }
#pragma unroll 2
      for (int n = thread; n < pairs * quads; n += a.threads) {
        const PlaneRotation rotation = rotations[n / quads];
        if (!rotation.rotates()) continue;
        auto &of_p = reinterpret_cast<float4 *>(v + rotation.p * Size)[n % quads];
        auto &of_q = reinterpret_cast<float4 *>(v + rotation.q * Size)[n % quads];
        float4 x = of_p, y = of_q;
        rotation.turn(x.x, y.x), rotation.turn(x.y, y.y);
        rotation.turn(x.z, y.z), rotation.turn(x.w, y.w);
        of_p = x, of_q = y;
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
