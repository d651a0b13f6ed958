#pragma once

// The subspace bases of a layer's heads from their statistics, on the device: what
// learn_subspace_basis() and evidence_of() are on the host, a block a head.
//
// The covariance of keys is worked out in double, as much of it goes off against the mean; what follows
// is float, which is far finer than the bytes or words that a basis is rounded to. For heads of up to
// 128 channels: two matrices have to fit in shared memory.

#include <cuda_runtime.h>

#include <cstddef>

#include "squat/coding/query_statistics.hpp"
#include "squat/cuda/coding/block_eigen.cuh"
#include "squat/cuda/coding/block_matrix.cuh"
#include "squat/cuda/coding/column_quarter.cuh"
#include "squat/cuda/coding/key_rows.cuh"
#include "squat/cuda/coding/learnt_basis.cuh"
#include "squat/cuda/coding/moments.cuh"
#include "squat/cuda/error.hpp"
#include "squat/cuda/kernels/launch_behind.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/state/device_buffer.hpp"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

template <int HeadDim>
struct LearnCall {
  HeadSums layout;
  const double *doubles;     ///< [kv_heads, layout.doubles]
  const float *floats;       ///< [kv_heads, layout.floats]
  const double *row_counts;  ///< [layout.rows]
  double keys, draws;        ///< how many there are, and how many rows that have any
  TileTables tables;
  bool bytes;       ///< A^-T is rounded to bytes, else to words
  float *matrices;  ///< [kv_heads, 2, HeadDim, HeadDim]; of each head the first becomes A^-T as it was
                    ///< before, the second is overwritten
  LearntBasis<HeadDim> *learnt;
};

/// Where what such a call writes lies in a workspace of the device.
template <int HeadDim>
struct LearningMemory {
  LearntBasis<HeadDim> *learnt;  ///< [kv_heads]
  float *matrices;               ///< LearnCall::matrices
  double *row_counts;            ///< [rows]

  /// Makes the workspace larger where needed.
  LearningMemory(DeviceBuffer<std::byte> &workspace, std::size_t kv_heads, std::size_t rows) {
    const std::size_t of_learnt = kv_heads * sizeof(*learnt);
    const std::size_t of_matrices = kv_heads * 2 * HeadDim * HeadDim * sizeof(*matrices);
    const std::size_t bytes = of_learnt + of_matrices + rows * sizeof(*row_counts);
    if (workspace.bytes() < bytes) workspace = DeviceBuffer<std::byte>(bytes);
    learnt = reinterpret_cast<LearntBasis<HeadDim> *>(workspace.data());
    matrices = reinterpret_cast<float *>(workspace.data() + of_learnt);
    row_counts = reinterpret_cast<double *>(workspace.data() + of_learnt + of_matrices);
  }
};

/// One head, by a block.
template <int HeadDim>
class BasisLearner {
 public:
  using Matrix = BlockMatrix<HeadDim>;
  using Columns = ColumnQuarter<HeadDim>;
  static constexpr int own = Matrix::own, threads = Matrix::threads;
  static constexpr int vectors = HeadDim * (HeadDim + 1);  // doubles before them: of two matrices
  static constexpr int shared_bytes = (vectors + 8 * HeadDim) * static_cast<int>(sizeof(double));
  static_assert(2 * Matrix::floats * sizeof(float) == vectors * sizeof(double));
  static_assert(KeyRows<HeadDim>::tile_doubles <= vectors);
  static_assert(threads == Columns::threads);
  static_assert(sizeof(EigenMemory<HeadDim>) <= 6 * HeadDim * sizeof(double));

  __device__ BasisLearner(const LearnCall<HeadDim> &call, int head, double *memory)
      : call_(call),
        layout_(call.layout),
        doubles_(call.doubles + head * layout_.doubles),
        floats_(call.floats + head * layout_.floats),
        matrix_(call.matrices + 2 * head * HeadDim * HeadDim),
        scratch_(matrix_ + HeadDim * HeadDim),
        to_(call.learnt[head]),
        memory_(memory),
        lost_(memory + vectors),
        mean_(lost_ + HeadDim),
        rest_(mean_ + HeadDim),
        diagonal_(rest_ + HeadDim),
        inverse_(diagonal_ + HeadDim),
        widths_(lost_),
        of_warps_(inverse_ + HeadDim),
        rows_(layout_, doubles_, floats_, call.row_counts, call.keys, call.tables, {lost_, mean_, rest_},
              memory) {}

  __device__ void learn() const {
    const Matrix p{reinterpret_cast<float *>(memory_)}, q{p.data + Matrix::floats};
    rows_.find_means();
    double x[own];
    if (layout_.rows > 1) {
      float of_rows[own];
      rows_.add_deviations(of_rows);
      const double inverse_draws = 1 / fmax(call_.draws, 1.0);
#pragma unroll
      for (int n = 0; n < own; ++n) x[n] = static_cast<double>(of_rows[n]) * inverse_draws;
      note_keys(x);
    }
    find_covariance(x);
    if (layout_.rows == 1) note_keys(x);
    put_diagonal(x);
    const double scale = block_sum(channel_or_none() ? diagonal_[threadIdx.x] : 0) / HeadDim;
    const double inverse_scale = 1 / scale;
#pragma unroll
    for (int n = 0; n < own; ++n) p(p.row(n), p.column(n)) = static_cast<float>(x[n] * inverse_scale);
    Columns columns;
    const double weight = find_metric(columns);
    float *factor = q.data;  // L^T
    cholesky(columns, factor);
    for (int n = 0; n < own; ++n) matrix_[place(n)] = factor[place(n)];
    // L^T S L: the second factor of either product is symmetric, or read as a column.
    const auto of_factor = [&](int i, int k) { return factor[i * HeadDim + k]; };
    multiply(p, of_factor, p, p.first_row());
    multiply(
        p, of_factor, [&](int k, int j) { return p(j, k); }, p.first_row());
    columns.fill([&](int i, int j) { return p(max(i, j), min(i, j)); });
    auto &eigen = *reinterpret_cast<EigenMemory<HeadDim> *>(rest_);
    diagonalize(columns, p, q, scratch_, eigen);
    // Coordinates of falling variance.
    const int column = columns.column(), coordinate = HeadDim - 1 - column;
    if (columns.part() == 0) {
      to_.variance[coordinate] = scale * fmax(eigen.merge.value[column], 0.0);
      to_.mean[column] = mean_[column];
      to_.value_sum[column] = doubles_[layout_.value_sum.first + column];
    }
    solve(columns);
#pragma unroll
    for (int n = 0; n < columns.quads; ++n) {
      columns.of(matrix_ + coordinate * HeadDim, n) = columns.x[n];
    }
    round(columns, coordinate);
    if (threadIdx.x == 0) to_.weight = weight;
  }

 private:
  /// Of a row and column of a matrix, where the threads have its elements one after the other.
  __device__ static int place(int n) { return static_cast<int>(threadIdx.x) + threads * n; }
  /// Of a vector's elements a thread has one or none.
  __device__ static bool channel_or_none() { return threadIdx.x < HeadDim; }

  __device__ double count() const { return fmax(call_.keys, 1.0); }

  /// See key_covariance().
  __device__ void find_covariance(double (&x)[own]) const {
    rows_.add_means(x);
    constexpr int stride = HeadDim + 1;
#pragma unroll
    for (int n = 0; n < own; ++n) memory_[Matrix::row(n) * stride + Matrix::column(n)] = x[n];
    __syncthreads();
    const double *moment = doubles_ + layout_.key_moment.first;
    const double inverse_count = 1 / count();
#pragma unroll
    for (int n = 0; n < own; ++n) {
      const int row = Matrix::row(n), column = Matrix::column(n);
      const double about_means =
          moment[moment_index(row, column)] - (x[n] + memory_[column * stride + row]);
      x[n] = about_means * inverse_count - rest_[row] * rest_[column];
    }
    __syncthreads();
  }

  __device__ void put_diagonal(const double (&x)[own]) const {
#pragma unroll
    for (int n = 0; n < own; ++n) {
      if (Matrix::row(n) == Matrix::column(n)) diagonal_[Matrix::row(n)] = x[n];
    }
    __syncthreads();
  }

  /// See effective_rank() and correlation(), of what the threads have of a covariance.
  __device__ void note_keys(const double (&x)[own]) const {
    const int thread = static_cast<int>(threadIdx.x);
    put_diagonal(x);
    double trace = 0, directions = 0;
    if (channel_or_none()) {
      const double square = diagonal_[thread];
      const double moment = doubles_[layout_.key_moment.first + moment_index(thread, thread)];
      const double inverse = square > 1e-7 * moment / count() ? 1 / sqrt(square) : 0.0;
      inverse_[thread] = inverse;
      trace = square;
      directions = square * inverse * inverse;
    }
    __syncthreads();
    double squares = 0, correlations = 0;
#pragma unroll
    for (int n = 0; n < own; ++n) {
      const double correlation = x[n] * inverse_[Matrix::row(n)] * inverse_[Matrix::column(n)];
      squares += x[n] * x[n];
      correlations += correlation * correlation;
    }
    trace = block_sum(trace);
    directions = block_sum(directions);
    squares = block_sum(squares);
    correlations = block_sum(correlations);
    if (thread != 0) return;
    to_.key_rank = squares > 0 ? trace * trace / squares : 0;
    to_.key_directions = correlations > 0 ? directions * directions / correlations : 0;
  }

  /// The metric of keys; returns what the queries' moments were divided by.
  __device__ double find_metric(Columns &metric) const {
    constexpr float ridge = .1f;
    const int column = metric.column();
    const float *moment = floats_ + layout_.query_moment.first;
    metric.fill([&](int i, int j) { return moment[moment_index(i, j)]; });
    double squares = 0, trace = 0;
#pragma unroll
    for (int n = 0; n < metric.quads; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto of_queries = static_cast<double>(element(metric.x[n], i));
        squares += of_queries * of_queries;
        if (metric.row(n) + i == column) trace = of_queries;
      }
    }
    squares = block_sum(squares);
    trace = block_sum(trace);
    const bool keys_alone = trace == 0;
    const double mean = keys_alone ? 1 : trace / HeadDim, inverse = 1 / mean;
#pragma unroll
    for (int n = 0; n < metric.quads; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float &x = element(metric.x[n], i);
        x = static_cast<float>(static_cast<double>(x) * inverse);
        if (metric.row(n) + i != column) continue;
        x += keys_alone ? 1.0f : ridge;
        const double width = call_.bytes ? sqrt(static_cast<double>(x)) : 1;
        to_.metric[column] = x;
        to_.input_scales[column] = static_cast<float>(1 / width);
        widths_[column] = width;
      }
    }
    if (threadIdx.x == 0) to_.query_rank = squares > 0 ? trace * trace / squares : 0;
    return mean;
  }

  /// The columns become L^-T times them. Their rows of L come from global memory.
  __device__ void solve(Columns &columns) const {
    constexpr int stride = HeadDim + 4;  // writes of a column meet four to a bank, reads none
    static_assert(stride * HeadDim <= 2 * Matrix::floats);
    float *l = reinterpret_cast<float *>(memory_);
    __syncthreads();
#pragma unroll
    for (int n = 0; n < own; ++n) {
      const int column = Matrix::row(n), row = Matrix::column(n);
      const float x = matrix_[column * HeadDim + row];
      l[row * stride + column] = row == column ? 0 : x;
      if (row == column) l[row * stride + HeadDim] = 1 / x;
    }
    __syncthreads();
    solve_transposed(
        l, stride, [&](int row) { return l[row * stride + HeadDim]; }, columns);
  }

  /// See KeyQuantizer::rounded_basis(): a column is an output, its rows are inputs.
  __device__ void round(const Columns &columns, int output) const {
    double largest = 0, sum = 0;
    const auto even = [&](int n, int i) {
      float4 x = columns.x[n];
      return static_cast<double>(element(x, i)) * widths_[columns.row(n) + i];
    };
#pragma unroll
    for (int n = 0; n < columns.quads; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        largest = fmax(largest, fabs(even(n, i)));
        sum += fabs(even(n, i));
      }
    }
    largest = reduce_column(largest, [](double a, double b) { return fmax(a, b); });
    sum = sum_of_column(sum);
    double scale = 0, steps = 0, zero = 0;
    if (call_.bytes) {
      scale = fmax(largest / 127.5, 1e-30);
      steps = 1 / scale;
      zero = 127.5;
    } else if (largest > 1e-30) {
      steps = fmin((65535 - HeadDim / 2) / sum, 32767 / largest);
      scale = 1 / steps;
    }
    auto *codes = reinterpret_cast<short4 *>(to_.codes + output * HeadDim);
#pragma unroll
    for (int n = 0; n < columns.quads; ++n) {
      const auto code = [&](int i) {
        const int x = __double2int_rn(even(n, i) * steps + zero);
        return static_cast<short>(call_.bytes ? min(max(x, 0), 255) : x);
      };
      codes[columns.row(n) / 4] = {code(0), code(1), code(2), code(3)};
    }
    if (columns.part() == 0) to_.scales[output] = static_cast<float>(isfinite(sum) ? scale : sum);
  }

  /// Over the threads of the block, the same for all.
  __device__ double block_sum(double x) const {
    constexpr int warps = threads / warp_lanes;
    x = sum_lanes<1>(x);
    __syncthreads();
    if (lane_index() == 0) of_warps_[warp_index()] = x;
    __syncthreads();
    x = 0;
    for (int i = 0; i < warps; ++i) x += of_warps_[i];
    return x;
  }

  const LearnCall<HeadDim> &call_;
  const HeadSums &layout_;
  const double *doubles_;
  const float *floats_;
  float *matrix_;   // L^T, then A^-T, [HeadDim, HeadDim]
  float *scratch_;  // as large
  LearntBasis<HeadDim> &to_;
  double *memory_;  // two matrices of float, or one of double, or tiles of rows
  double *lost_, *mean_, *rest_, *diagonal_, *inverse_;  // [channel]
  double *widths_;  // how far channels of queries range, 1 for words; where lost_ was
  double
      *of_warps_;  // of block_sum(), three times as long: from rest_ on there is EigenMemory in the end
  KeyRows<HeadDim> rows_;
};

/// Grid: KV heads.
template <int HeadDim>
__global__ void __launch_bounds__(BlockMatrix<HeadDim>::threads)
    learn_bases(const __grid_constant__ LearnCall<HeadDim> call) {
  extern __shared__ __align__(16) double learn_memory[];
  BasisLearner<HeadDim>(call, static_cast<int>(blockIdx.x), learn_memory).learn();
}

template <int HeadDim>
void launch_learn_bases(const LearnCall<HeadDim> &call, int kv_heads, cudaStream_t stream) {
  const auto kernel = learn_bases<HeadDim>;
  constexpr int bytes = BasisLearner<HeadDim>::shared_bytes;
  allow_shared_bytes<learn_bases<HeadDim>>(bytes);
  kernel<<<static_cast<unsigned>(kv_heads), BlockMatrix<HeadDim>::threads, bytes, stream>>>(call);
  check(cudaGetLastError(), "learning of bases");
}

/// Whether the device that is current can: heads have room in shared memory.
template <int HeadDim>
bool can_learn_bases() {
  if constexpr (HeadDim > 128) {
    return false;
  } else {
    return BasisLearner<HeadDim>::shared_bytes <= device_limits().shared_bytes;
  }
}

}  // namespace squat::cuda
