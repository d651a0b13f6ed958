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
#include "squat/cuda/coding/moments.cuh"
#include "squat/cuda/error.hpp"
#include "squat/cuda/kernels/launch_behind.cuh"
#include "squat/cuda/kernels/rotary.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// What a head has learnt. See SubspaceBasis and Evidence.
template <int HeadDim>
struct LearntBasis {
  alignas(16) float matrix[HeadDim * HeadDim];  ///< A^-T, [coordinate, channel]
  float metric[HeadDim];
  double variance[HeadDim];  ///< falling
  double mean[HeadDim];      ///< of keys as row 0 of a tile has them
  double value_sum[HeadDim];
  double weight;
  double key_directions, key_rank, query_rank;
};

template <int HeadDim>
struct LearnCall {
  HeadSums layout;
  const double *doubles;     ///< [kv_heads, layout.doubles]
  const float *floats;       ///< [kv_heads, layout.floats]
  const double *row_counts;  ///< [layout.rows]
  double keys, draws;        ///< how many there are, and how many rows that have any
  TileTables tables;
  float *scratch;  ///< [kv_heads, 2, HeadDim, HeadDim]
  LearntBasis<HeadDim> *learnt;
};

/// One head, by a block.
template <int HeadDim>
class BasisLearner {
 public:
  using Matrix = BlockMatrix<HeadDim>;
  using Columns = ColumnQuarter<HeadDim>;
  static constexpr int own = Matrix::own, threads = Matrix::threads, parts = threads / HeadDim;
  static constexpr int tile_rows = 16;
  static constexpr int vectors = HeadDim * (HeadDim + 1);  // doubles before them: of two matrices
  static constexpr int shared_bytes = (vectors + 9 * HeadDim) * static_cast<int>(sizeof(double));
  static_assert(2 * Matrix::floats * sizeof(float) == vectors * sizeof(double));
  static_assert(2 * tile_rows * HeadDim <= vectors);
  static_assert(threads == Columns::threads);
  static_assert(sizeof(EigenMemory<HeadDim>) <= 7 * HeadDim * sizeof(double));

  __device__ BasisLearner(const LearnCall<HeadDim> &call, int head, double *memory)
      : call_(call),
        layout_(call.layout),
        doubles_(call.doubles + head * layout_.doubles),
        floats_(call.floats + head * layout_.floats),
        factor_(call.scratch + 2 * head * HeadDim * HeadDim),
        scratch_(factor_ + HeadDim * HeadDim),
        to_(call.learnt[head]),
        memory_(memory),
        lost_(memory + vectors),
        mean_(lost_ + HeadDim),
        rest_(mean_ + HeadDim),
        diagonal_(rest_ + HeadDim),
        inverse_(diagonal_ + HeadDim),
        parts_(inverse_ + HeadDim) {}

  __device__ void learn() const {
    const Matrix p{reinterpret_cast<float *>(memory_)}, q{p.data + Matrix::floats};
    find_means();
    double x[own];
    if (layout_.rows > 1) {
      float of_rows[own];
      add_rows<float>([&](int row, int channel) { return deviation(row, channel); }, of_rows);
#pragma unroll
      for (int n = 0; n < own; ++n) x[n] = static_cast<double>(of_rows[n]) / fmax(call_.draws, 1.0);
      note_keys(x);
    }
    find_covariance(x);
    if (layout_.rows == 1) note_keys(x);
    put_diagonal(x);
    const double scale = block_sum(channel_or_none() ? diagonal_[threadIdx.x] : 0) / HeadDim;
#pragma unroll
    for (int n = 0; n < own; ++n) p(p.row(n), p.column(n)) = static_cast<float>(x[n] / scale);
    Columns columns;
    const double weight = find_metric(columns);
    float *factor = q.data;  // L^T
    cholesky(columns, factor);
    for (int n = 0; n < own; ++n) factor_[place(n)] = factor[place(n)];
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
      columns.of(to_.matrix + coordinate * HeadDim, n) = columns.x[n];
    }
    if (threadIdx.x == 0) to_.weight = weight;
  }

 private:
  /// Of a row and column of a matrix, where the threads have its elements one after the other.
  __device__ static int place(int n) { return static_cast<int>(threadIdx.x) + threads * n; }
  /// Of a vector's elements a thread has one or none.
  __device__ static bool channel_or_none() { return threadIdx.x < HeadDim; }

  __device__ double row_count(int row) const { return call_.row_counts[row]; }
  __device__ double count() const { return fmax(call_.keys, 1.0); }

  /// The sum of keys in a row of the tile. What rounding has taken off the rows' sums all together is
  /// given back, an equal share to every key.
  __device__ double sum(int row, int channel) const {
    if (layout_.rows == 1) return doubles_[layout_.key_sum.first + channel];
    return rounded(row, channel) + row_count(row) * lost_[channel];
  }
  __device__ double rounded(int row, int channel) const {
    return static_cast<double>(floats_[layout_.row_sums.first + row * HeadDim + channel]);
  }

  /// R(sign row) x, of x(channel).
  template <class X>
  __device__ double turned(int row, int channel, double sign, X &&x) const {
    const TileTables &tables = call_.tables;
    if (tables.frame == 0 || channel >= 2 * tables.pairs) return x(channel);
    const int pair = tables.interleaved ? channel / 2 : channel % tables.pairs;
    const int2 channels = pair_channels(tables, pair);
    const float2 angle = frame_angle(tables, pair, row);
    const double c = static_cast<double>(angle.x), s = sign * static_cast<double>(angle.y);
    return channel == channels.x ? x(channels.x) * c - x(channels.y) * s
                                 : x(channels.x) * s + x(channels.y) * c;
  }
  __device__ double turned_mean(int row, int channel) const {
    return turned(row, channel, 1, [&](int i) { return mean_[i]; });
  }
  /// Of a row's mean from that of all, both before their rotary embedding, times the root of its count.
  __device__ float2 deviation(int row, int channel) const {
    const double keys = row_count(row);
    if (keys == 0) return {0, 0};
    const double of_row = turned(row, channel, -1, [&](int i) { return sum(row, i); });
    const float x = static_cast<float>(of_row - keys * mean_[channel]) / sqrtf(static_cast<float>(keys));
    return {x, x};
  }

  /// to[channel] = the sum over rows of x(row, channel), finished by finish(channel, sum).
  template <class X, class Finish>
  __device__ void sum_rows(double *to, X &&x, Finish &&finish) const {
    const int channel = place(0) % HeadDim, part = place(0) / HeadDim;
    double all = 0;
#pragma unroll 4
    for (int row = part; row < layout_.rows; row += parts) all += x(row, channel);
    parts_[part * HeadDim + channel] = all;
    __syncthreads();
    if (part == 0) {
      all = 0;
      for (int i = 0; i < parts; ++i) all += parts_[i * HeadDim + channel];
      to[channel] = finish(channel, all);
    }
    __syncthreads();
  }

  __device__ void find_means() const {
    const auto over_count = [&](int, double all) { return all / count(); };
    if (layout_.rows > 1) {
      sum_rows(
          lost_, [&](int row, int channel) { return rounded(row, channel); },
          [&](int channel, double all) {
            return (doubles_[layout_.key_sum.first + channel] - all) / count();
          });
    }
    sum_rows(
        mean_,
        [&](int row, int channel) {
          return turned(row, channel, -1, [&](int i) { return sum(row, i); });
        },
        over_count);
    sum_rows(
        rest_,
        [&](int row, int channel) {
          return sum(row, channel) - row_count(row) * turned_mean(row, channel);
        },
        over_count);
  }

  /// x = the sum over rows of left(row, i) right(row, j), of the thread's i and j; factors(row, channel)
  /// is left and right.
  template <class Real, class Factors>
  __device__ void add_rows(Factors &&factors, Real (&x)[own]) const {
    constexpr int of_thread = tile_rows / parts;
    const int channel = place(0) % HeadDim, part = place(0) / HeadDim;
    Real *lefts = reinterpret_cast<Real *>(memory_), *rights = lefts + tile_rows * HeadDim;
#pragma unroll
    for (Real &sum : x) sum = 0;
#pragma unroll 1
    for (int first = 0; first < layout_.rows; first += tile_rows) {
      decltype(factors(0, 0)) of_tile[of_thread] = {};  // all are read before one is written
#pragma unroll
      for (int n = 0; n < of_thread; ++n) {
        const int row = first + part + n * parts;
        if (row < layout_.rows) of_tile[n] = factors(row, channel);
      }
      __syncthreads();
#pragma unroll
      for (int n = 0; n < of_thread; ++n) {
        lefts[(part + n * parts) * HeadDim + channel] = of_tile[n].x;
        rights[(part + n * parts) * HeadDim + channel] = of_tile[n].y;
      }
      __syncthreads();
#pragma unroll 2
      for (int k = 0; k < tile_rows; ++k) {
        add_product<HeadDim>(
            x, [&](int i) { return lefts[k * HeadDim + i]; },
            [&](int j) { return rights[k * HeadDim + j]; });
      }
    }
    __syncthreads();
  }

  /// See key_covariance().
  __device__ void find_covariance(double (&x)[own]) const {
    add_rows<double>(
        [&](int row, int channel) -> double2 {
          const double mean = turned_mean(row, channel);
          return {sum(row, channel) - .5 * row_count(row) * mean, mean};
        },
        x);
    constexpr int stride = HeadDim + 1;
#pragma unroll
    for (int n = 0; n < own; ++n) memory_[Matrix::row(n) * stride + Matrix::column(n)] = x[n];
    __syncthreads();
    const double *moment = doubles_ + layout_.key_moment.first;
#pragma unroll
    for (int n = 0; n < own; ++n) {
      const int row = Matrix::row(n), column = Matrix::column(n);
      const double about_means =
          moment[moment_index(row, column)] - (x[n] + memory_[column * stride + row]);
      x[n] = about_means / count() - rest_[row] * rest_[column];
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
    const double mean = keys_alone ? 1 : trace / HeadDim;
#pragma unroll
    for (int n = 0; n < metric.quads; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float &x = element(metric.x[n], i);
        x = static_cast<float>(static_cast<double>(x) / mean);
        if (metric.row(n) + i != column) continue;
        x += keys_alone ? 1.0f : ridge;
        to_.metric[column] = x;
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
      const float x = factor_[column * HeadDim + row];
      l[row * stride + column] = row == column ? 0 : x;
      if (row == column) l[row * stride + HeadDim] = 1 / x;
    }
    __syncthreads();
    solve_transposed(
        l, stride, [&](int row) { return l[row * stride + HeadDim]; }, columns);
  }

  /// Over the threads of the block, the same for all.
  __device__ double block_sum(double x) const {
    constexpr int warps = threads / warp_lanes;
    x = sum_lanes<1>(x);
    __syncthreads();
    if (lane_index() == 0) parts_[warp_index()] = x;
    __syncthreads();
    x = 0;
    for (int i = 0; i < warps; ++i) x += parts_[i];
    return x;
  }

  const LearnCall<HeadDim> &call_;
  const HeadSums &layout_;
  const double *doubles_;
  const float *floats_;
  float *factor_;   // L^T, [HeadDim, HeadDim]
  float *scratch_;  // as large
  LearntBasis<HeadDim> &to_;
  double *memory_;  // two matrices of float, or one of double, or tiles of rows
  double *lost_, *mean_, *rest_, *diagonal_, *inverse_;  // [channel]
  double *parts_;                                        // [part, channel]
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
