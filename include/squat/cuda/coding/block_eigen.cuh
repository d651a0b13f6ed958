#pragma once

// Eigenvalues and eigenvectors of a symmetric matrix, by a block: Householder's reflections make it
// tridiagonal, Cuppen's method (1981) divides and conquers that, and the reflections turn its
// eigenvectors back (Golub and Van Loan, Matrix Computations, sections 8.3 and 8.4; LAPACK's ssytrd,
// sstedc and sormtr). Every step has work for all threads. What follows one after the other is two sums
// over a warp for each reflection and, in each of log2(Size) levels, fourteen over the terms of the
// secular equation.
//
// Every loop has an end that does not depend on numbers, so that NaN comes out where it went in.

#include <cuda_runtime.h>

#include "squat/cuda/coding/block_matrix.cuh"
#include "squat/cuda/coding/column_quarter.cuh"
#include "squat/cuda/kernels/warp.cuh"

namespace squat::cuda {

/// What the steps leave to one another in shared memory.
template <int Size>
struct alignas(16) EigenMemory {
  float diagonal[Size], beside[Size];  ///< of the tridiagonal matrix; beside[i]: of i and i + 1
  float scales[Size];                  ///< tau of each reflection 1 - tau v v^T
  union {
    struct {
      float product[Size], change[Size], column[Size];
    } reflection;
    struct {
      double value[Size], sorted[Size], pole[Size];
      float vector[Size];
      int place[Size];
    } merge;
  };
};

/// A = H T H^T, where T is tridiagonal and H the product of reflections, of which row k of `reflectors`
/// has the vector v: 0 up to k, then 1 (ssytd2). A reflection is applied from both sides, A - v w^T - w
/// v^T, by the step after it, which reads the matrix once for that and for its own product A v.
template <int Size>
__device__ inline void tridiagonalize(ColumnQuarter<Size> &a, float *reflectors,
                                      EigenMemory<Size> &memory) {
  constexpr int own = Size / warp_lanes;
  auto &[product, change, next] = memory.reflection;
  const int column = a.column();
  const auto row = [](int n) { return lane_index() + warp_lanes * n; };
  float v[own], tau = 0;  // of the first warp
  // Column k is x from row k on (slarfg). What lies below 1e-15 beside the matrix's largest is 0.
  const auto reflect = [&](int k, const float(&x)[own]) {
    float square = 0, head = 0;
#pragma unroll
    for (int n = 0; n < own; ++n) {
      if (row(n) == k) memory.diagonal[k] = x[n];
      if (row(n) == k + 1) head = x[n];
      if (row(n) > k + 1) square = fmaf(x[n], x[n], square);
    }
    square = sum_lanes<1>(square);
    head = __shfl_sync(0xffffffffu, head, (k + 1) % warp_lanes);
    float beta = head, inverse = 0;
    tau = 0;
    if (square > 1e-30f) {
      beta = -copysignf(sqrtf(fmaf(head, head, square)), head);
      tau = (beta - head) / beta;
      inverse = 1 / (head - beta);
    }
#pragma unroll
    for (int n = 0; n < own; ++n) {
      v[n] = row(n) > k + 1 ? x[n] * inverse : row(n) == k + 1 ? 1.0f : 0.0f;
      reflectors[k * Size + row(n)] = v[n];
    }
    memory.beside[k] = beta;
    memory.scales[k] = tau;
  };
  if (column == 0) {
#pragma unroll
    for (int n = 0; n < a.quads; ++n) a.of(next, n) = a.x[n];
  }
  __syncthreads();
  if (warp_index() == 0) {
    float x[own];
#pragma unroll
    for (int n = 0; n < own; ++n) x[n] = next[row(n)];
    reflect(0, x);
  }
  __syncthreads();
#pragma unroll 1
  for (int k = 0; k < Size - 1; ++k) {
    const float *of_k = reflectors + k * Size, *before = of_k - Size;
    if ((column | 7) > k) {  // some of the warp's columns are left
      const float of_before = k > 0 ? before[column] : 0, of_change = k > 0 ? change[column] : 0;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < a.quads; ++n) {
        if (16 * n + 15 < k) continue;
        if (k > 0) {
          add_scaled(a.x[n], -of_change, a.of(before, n));
          add_scaled(a.x[n], -of_before, a.of(change, n));
        }
        sum = dot(a.x[n], a.of(of_k, n), sum);
      }
      sum = sum_of_column(sum);
      if (a.part() == 0) product[column] = sum;
      if (column == k + 1) {
#pragma unroll
        for (int n = 0; n < a.quads; ++n) a.of(next, n) = a.x[n];
      }
    }
    __syncthreads();
    if (warp_index() == 0) {  // w = tau (A v - tau / 2 (v^T A v) v)
      float sum = 0, x[own], w[own];
#pragma unroll
      for (int n = 0; n < own; ++n) {
        w[n] = row(n) > k ? product[row(n)] : 0;
        sum = fmaf(v[n], w[n], sum);
      }
      sum = sum_lanes<1>(sum);
      const float of_v = -.5f * tau * tau * sum, w_next = fmaf(tau, product[k + 1], of_v);
#pragma unroll
      for (int n = 0; n < own; ++n) {
        w[n] = fmaf(tau, w[n], of_v * v[n]);
        change[row(n)] = w[n];
        x[n] = next[row(n)] - v[n] * w_next - w[n];
      }
      reflect(k + 1, x);
    }
    __syncthreads();
  }
}

/// The columns of x become H times them.
template <int Size>
__device__ inline void reflect_back(const float *reflectors, const float *scales,
                                    ColumnQuarter<Size> &x) {
#pragma unroll 1
  for (int k = Size - 3; k >= 0; --k) {
    const float *v = reflectors + k * Size;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < x.quads; ++n) {
      if (16 * n + 15 > k) sum = dot(x.x[n], x.of(v, n), sum);
    }
    sum = scales[k] * sum_of_column(sum);
#pragma unroll
    for (int n = 0; n < x.quads; ++n) {
      if (16 * n + 15 > k) add_scaled(x.x[n], -sum, x.of(v, n));
    }
  }
}

/// The secular equation of poles `first` to `end`, 1 + rho sum_i z_i^2 / (pole_i - x) = 0, as the four
/// lanes have it that look for one of its roots: a quarter of the terms each.
template <int Size>
struct SecularEquation {
  static constexpr int lanes = 4, terms = Size / lanes;

  const double *poles;
  int first, end;
  double origin = 0;        // a root is origin + shift, where the origin is the pole nearer to it
  float difference[terms];  // of the poles to it
  float weight[terms], all = 0;

  __device__ SecularEquation(const double *poles, const float *z, int first, int end, float rho)
      : poles(poles), first(first), end(end) {
#pragma unroll
    for (int n = 0; n < terms; ++n) {
      weight[n] = pole(n) < end ? rho * z[pole(n)] * z[pole(n)] : 0;
      all += weight[n];
    }
    all = sum_of_column(all);
  }

  /// Of the thread's n-th term.
  __device__ int pole(int n) const { return first + static_cast<int>(threadIdx.x) % lanes + lanes * n; }

  __device__ void set_origin(int to) {
    origin = poles[to];
#pragma unroll
    for (int n = 0; n < terms; ++n)
      difference[n] = pole(n) < end ? static_cast<float>(poles[pole(n)] - origin) : 1e30f;
  }

  /// Its left side, and shift times the slope.
  __device__ float2 at(float shift) const {
    float sum = 0, rise = 0;
#pragma unroll
    for (int n = 0; n < terms; ++n) {
      if (first + lanes * n >= end) break;
      const float inverse = reciprocal(difference[n] - shift), term = weight[n] * inverse;
      sum += term;
      rise = fmaf(term, shift * inverse, rise);
    }
    return {1 + sum_of_column(sum), sum_of_column(rise)};
  }

  /// The shift of the root between pole `own` and the next. Bisection of what floats there are finds
  /// |shift| but for a factor of two. Of 1 / |shift| the equation is convex, so that Newton's method
  /// comes nearer from there with every step.
  __device__ float solve(int own) {
    constexpr int bisections = 7, newton_steps = 6;
    set_origin(own);
    float sign = 1, most = all * 1.00001f;
    const bool is_last = own + 1 >= end;
    if (!is_last) most = static_cast<float>(.5 * (poles[own + 1] - origin));
    const bool is_above = at(most).x < 0;
    if (!is_last && is_above) {
      sign = -1;
      set_origin(own + 1);
    }
    int low = __float_as_int(1.2e-38f), high = __float_as_int(most);
#pragma unroll 1
    for (int i = 0; i < bisections + newton_steps; ++i) {
      const int x = i < bisections ? low + (high - low) / 2 : high;
      const float size = __int_as_float(x);
      const float2 found = at(sign * size);
      const float error = sign * found.x, rise = sign * found.y;
      if (i < bisections) {
        (error < 0 ? low : high) = x;
      } else {
        high = __float_as_int(size * (rise / (rise + fmaxf(error, 0))));  // less than 0: rounding
      }
    }
    return sign * __int_as_float(high);
  }
};

/// The eigenvalues of a tridiagonal matrix, rising, become memory.merge.value, and the eigenvectors the
/// columns of q. u is overwritten.
///
/// An element b beside the diagonal is |b| (1, +-1)^T (1, +-1) and what is taken off the diagonal. So
/// the halves of a block, once diagonal, are D + rho z z^T, whose eigenvalues are the roots of the
/// SecularEquation, one above each pole d_i and below the next, and whose eigenvectors are
/// z_i / (d_i - x), where z is what has exactly the roots that were found (Gu and Eisenstat 1995), which
/// makes them orthogonal to the last digits however near the roots lie. A thread has a quarter of the
/// terms of one root.
///
/// LAPACK takes roots apart that it knows (deflation); here elements of b and z are not less than
/// `least`, nor poles nearer to each other than a part of it, which changes the matrix less than
/// rounding has and leaves all roots alike.
template <int Size>
__device__ inline void conquer(const BlockMatrix<Size> &q, const BlockMatrix<Size> &u,
                               EigenMemory<Size> &memory) {
  constexpr int lanes = SecularEquation<Size>::lanes, terms = SecularEquation<Size>::terms;
  constexpr float least = 7.5e-9f;  // 2^-27; the matrix has elements of up to 1
  constexpr double apart = static_cast<double>(least) / Size;
  auto &[value, sorted, pole, z, place] = memory.merge;
  const int thread = static_cast<int>(threadIdx.x), own = thread / lanes, part = thread % lanes;
  const auto beside = [&](int i) {
    return copysignf(fmaxf(fabsf(memory.beside[i]), least), memory.beside[i]);
  };
  if (part == 0) {
    double rest = static_cast<double>(memory.diagonal[own]);
    if (own > 0) rest -= static_cast<double>(fabsf(beside(own - 1)));
    if (own < Size - 1) rest -= static_cast<double>(fabsf(beside(own)));
    value[own] = rest;
  }
#pragma unroll 4
  for (int n = 0; n < q.own; ++n) {
    q(q.row(n), q.column(n)) = q.row(n) == q.column(n) ? 1.0f : 0.0f;
    u(q.row(n), q.column(n)) = 0;
  }
  __syncthreads();
#pragma unroll 1
  for (int half = 1; half < Size; half *= 2) {
    const int first = own / (2 * half) * (2 * half), middle = first + half;
    const bool merges = middle < Size;
    const int end = merges ? min(middle + half, Size) : first;
    const float rho = merges ? fabsf(beside(middle - 1)) : 0;
    if (merges && part == 0) {
      const bool lower = own < middle;
      const float x =
          lower ? q(middle - 1, own) : copysignf(q(middle, own), q(middle, own) * beside(middle - 1));
      // Those of the other half that come before it, from `low` on.
      int low = lower ? middle : first, high = lower ? end : middle;
      while (low < high) {
        const int i = (low + high) / 2;
        const bool before = lower ? value[i] < value[own] : value[i] <= value[own];
        (before ? low : high) = before ? i + 1 : i;
      }
      const int rank = own + low - middle;
      sorted[rank] = value[own];
      z[rank] = copysignf(fmaxf(fabsf(x), least), x);
      place[rank] = own;
    }
    __syncthreads();
    if (merges && part == 0) {
      double x = sorted[own];
      for (int i = own - 1; i >= first && sorted[own] - sorted[i] < Size * apart; --i)
        x = fmax(x, sorted[i] + (own - i) * apart);
      pole[own] = x;
    }
    __syncthreads();
    SecularEquation<Size> equation(memory.merge.pole, z, first, end, rho);
    auto &difference = equation.difference;
    const float shift = equation.solve(own);
#pragma unroll
    for (int n = 0; n < terms; ++n) {
      const int i = first + part + lanes * n;
      difference[n] -= shift;
      if (i < end) u(i, own) = difference[n];
    }
    __syncthreads();
    float ratio = 1;
    for (int i = first + part; i < end; i += lanes) {
      ratio *= i == own ? u(own, own) : u(own, i) / static_cast<float>(pole[own] - pole[i]);
    }
    ratio *= __shfl_xor_sync(0xffffffffu, ratio, 1);
    ratio *= __shfl_xor_sync(0xffffffffu, ratio, 2);
    __syncthreads();
    if (merges && part == 0) {
      z[own] = copysignf(sqrtf(fabsf(ratio)), z[own]);
      value[own] = equation.origin + static_cast<double>(shift);
    }
    __syncthreads();
    float square = 0;
#pragma unroll
    for (int n = 0; n < terms; ++n) {
      const int i = first + part + lanes * n;
      if (i < end) difference[n] = z[i] * (shift / difference[n]);
      if (i < end) square = fmaf(difference[n], difference[n], square);
    }
    const float norm = 1 / sqrtf(sum_of_column(square));
#pragma unroll
    for (int n = 0; n < terms; ++n) {
      const int i = first + part + lanes * n;
      if (i < end) u(place[i], own) = difference[n] * norm;
    }
    if (!merges) {
      for (int i = first + part; i < Size; i += lanes) u(i, own) = i == own ? 1.0f : 0.0f;
    }
    __syncthreads();
    // A warp's rows of q are of one half, or of some in the same eight columns.
    const int width = max(half, q.rows), from = q.first_row() / width * width;
    multiply(
        q, [&](int i, int k) { return q(i, k); },
        [&](int k, int j) { return k / (2 * half) == j / (2 * half) ? u(k, j) : 0.0f; }, from,
        min(from + width, Size));
  }
}

/// The eigenvectors of a symmetric matrix, in its place, a column each; the eigenvalues, rising, become
/// memory.merge.value. They err by a millionth of the largest. p and q are overwritten, and so is
/// `scratch`, [Size, Size] in global memory. Of a matrix with elements that are not finite, eigenvalues
/// become NaN, and nothing else.
template <int Size>
__device__ inline void diagonalize(ColumnQuarter<Size> &a, const BlockMatrix<Size> &p,
                                   const BlockMatrix<Size> &q, float *scratch,
                                   EigenMemory<Size> &memory) {
  // The largest element comes to lie between 1/2 and 1.
  float largest = 0;
  bool finite = true;
#pragma unroll
  for (int n = 0; n < a.quads; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float x = element(a.x[n], i);
      largest = fmaxf(largest, fabsf(x));
      finite = finite && isfinite(x);
    }
  }
  largest = largest_lane<1>(largest);
  if (lane_index() == 0) memory.scales[warp_index()] = largest;
  if (!__syncthreads_and(finite ? 1 : 0)) {
    if (a.part() == 0) memory.merge.value[a.column()] = nan("");
    __syncthreads();
    return;
  }
  for (int i = 0; i < a.threads / warp_lanes; ++i) largest = fmaxf(largest, memory.scales[i]);
  __syncthreads();
  const float unit = unit_above(largest), inverse = inverse_of_power(unit);
#pragma unroll
  for (int n = 0; n < a.quads; ++n) {
    const float4 x = a.x[n];
    a.x[n] = {x.x * inverse, x.y * inverse, x.z * inverse, x.w * inverse};
  }
  const auto quad = [](float *matrix, int n) -> float4 & {
    return reinterpret_cast<float4 *>(
        matrix)[static_cast<int>(threadIdx.x) + n * ColumnQuarter<Size>::threads];
  };
  tridiagonalize(a, q.data, memory);
#pragma unroll
  for (int n = 0; n < a.quads; ++n) quad(scratch, n) = quad(q.data, n);
  __syncthreads();
  conquer(p, q, memory);
  a.fill([&](int i, int j) { return p(i, j); });
#pragma unroll
  for (int n = 0; n < a.quads; ++n) quad(q.data, n) = quad(scratch, n);
  if (a.part() == 0) memory.merge.value[a.column()] *= largest > 0 ? static_cast<double>(unit) : 0.0;
  __syncthreads();
  reflect_back(q.data, memory.scales, a);
}

}  // namespace squat::cuda
