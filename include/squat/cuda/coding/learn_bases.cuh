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
#include "squat/cuda/coding/block_matrix.cuh"
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
  float matrix[HeadDim * HeadDim];  ///< A^-T, [coordinate, channel]
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
  float *factors;  ///< [kv_heads, HeadDim, HeadDim]
  LearntBasis<HeadDim> *learnt;
};

/// One head, by a block.
template <int HeadDim>
class BasisLearner {
 public:
  using Matrix = BlockMatrix<HeadDim>;
  static constexpr int own = Matrix::own, tile_rows = 16;
  static constexpr int vectors = HeadDim * (HeadDim + 1);  // doubles before them: of two matrices
  static constexpr int shared_bytes = (vectors + 9 * HeadDim) * static_cast<int>(sizeof(double));
  static_assert(2 * Matrix::floats * sizeof(float) == vectors * sizeof(double));
  static_assert(2 * tile_rows * HeadDim <= vectors);

  __device__ BasisLearner(const LearnCall<HeadDim> &call, int head, double *memory)
      : call_(call),
        layout_(call.layout),
        doubles_(call.doubles + head * layout_.doubles),
        floats_(call.floats + head * layout_.floats),
        factor_(call.factors + head * HeadDim * HeadDim),
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
    const int column = p.column(), thread = static_cast<int>(threadIdx.x);
    find_means();
    double x[own];
    if (layout_.rows > 1) {
      add_rows([&](int row, int channel) { return deviation(row, channel); },
               [&](int row, int channel) { return deviation(row, channel); }, x);
#pragma unroll
      for (double &of_rows : x) of_rows /= fmax(call_.draws, 1.0);
      note_keys(x);
    }
    find_covariance(x);
    if (layout_.rows == 1) note_keys(x);
    put_diagonal(x);
    const double scale = block_sum(thread < HeadDim ? diagonal_[thread] : 0) / HeadDim;
#pragma unroll
    for (int n = 0; n < own; ++n) p(p.row(n), column) = static_cast<float>(x[n] / scale);
    const double weight = put_metric(q);
    cholesky(q);
#pragma unroll 4
    for (int n = 0; n < own; ++n) factor_[p.row(n) * HeadDim + column] = q(p.row(n), column);
    multiply(p, p, q);
    multiply(
        p, [&](int i, int k) { return q(k, i); }, p);
    float *vectors = q.data;  // a row each
#pragma unroll 4
    for (int n = 0; n < own; ++n) {
      vectors[p.row(n) * HeadDim + column] = p.row(n) == column ? 1.0f : 0.0f;
    }
    diagonalize(p, vectors);
    // Coordinates of falling variance.
    __shared__ int order[HeadDim];
    if (thread < HeadDim) diagonal_[thread] = static_cast<double>(p(thread, thread));
    __syncthreads();
    if (thread < HeadDim) {
      const double variance = diagonal_[thread];
      int rank = 0;
      for (int i = 0; i < HeadDim; ++i) {
        rank += diagonal_[i] > variance || (diagonal_[i] == variance && i < thread) ? 1 : 0;
      }
      to_.variance[rank] = scale * fmax(variance, 0.0);
      to_.mean[thread] = mean_[thread];
      to_.value_sum[thread] = doubles_[layout_.value_sum.first + thread];
      order[thread] = rank;
    }
#pragma unroll 4
    for (int n = 0; n < own; ++n) p(column, p.row(n)) = vectors[p.row(n) * HeadDim + column];
    __syncthreads();
#pragma unroll 4
    for (int n = 0; n < own; ++n) q(p.row(n), column) = factor_[p.row(n) * HeadDim + column];
    __syncthreads();
    solve_transposed(q, p);
#pragma unroll 4
    for (int n = 0; n < own; ++n) {
      const int coordinate = p.row(n);
      to_.matrix[order[coordinate] * HeadDim + column] = p(column, coordinate);
    }
    if (thread == 0) to_.weight = weight;
  }

 private:
  __device__ double row_count(int row) const { return call_.row_counts[row]; }
  __device__ double count() const { return fmax(call_.keys, 1.0); }

  /// The sum of keys in a row of the tile. What rounding has taken off the rows' sums all together is
  /// given back, an equal share to every key.
  __device__ double sum(int row, int channel) const {
    if (layout_.rows == 1) return doubles_[layout_.key_sum.first + channel];
    return rounded(row, channel) + row_count(row) / count() * lost_[channel];
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
  __device__ double deviation(int row, int channel) const {
    const double keys = row_count(row);
    if (keys == 0) return 0;
    const double of_row = turned(row, channel, -1, [&](int i) { return sum(row, i); });
    return (of_row - keys * mean_[channel]) / sqrt(keys);
  }

  /// to[channel] = the sum over rows of x(row, channel), finished by finish(channel, sum).
  template <class X, class Finish>
  __device__ void sum_rows(double *to, X &&x, Finish &&finish) const {
    const int channel = Matrix::column(), part = Matrix::part();
    double all = 0;
    for (int row = part; row < layout_.rows; row += Matrix::parts) all += x(row, channel);
    parts_[part * HeadDim + channel] = all;
    __syncthreads();
    if (part == 0) {
      all = 0;
      for (int i = 0; i < Matrix::parts; ++i) all += parts_[i * HeadDim + channel];
      to[channel] = finish(channel, all);
    }
    __syncthreads();
  }

  __device__ void find_means() const {
    const auto over_count = [&](int, double all) { return all / count(); };
    if (layout_.rows > 1) {
      sum_rows(
          lost_, [&](int row, int channel) { return rounded(row, channel); },
          [&](int channel, double all) { return doubles_[layout_.key_sum.first + channel] - all; });
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

  /// x = the sum over rows of left(row, i) right(row, j), of the thread's i and j.
  template <class Left, class Right>
  __device__ void add_rows(Left &&left, Right &&right, double (&x)[own]) const {
    const int column = Matrix::column();
    double *lefts = memory_, *rights = memory_ + tile_rows * HeadDim;
#pragma unroll
    for (double &sum : x) sum = 0;
#pragma unroll 1
    for (int first = 0; first < layout_.rows; first += tile_rows) {
      __syncthreads();
      for (int k = Matrix::part(); k < tile_rows; k += Matrix::parts) {
        const bool is = first + k < layout_.rows;
        lefts[k * HeadDim + column] = is ? left(first + k, column) : 0;
        rights[k * HeadDim + column] = is ? right(first + k, column) : 0;
      }
      __syncthreads();
#pragma unroll 2
      for (int k = 0; k < tile_rows; ++k) {
        const double of_column = rights[k * HeadDim + column];
#pragma unroll
        for (int n = 0; n < own; ++n) x[n] += lefts[k * HeadDim + Matrix::row(n)] * of_column;
      }
    }
    __syncthreads();
  }

  /// See key_covariance().
  __device__ void find_covariance(double (&x)[own]) const {
    const int column = Matrix::column();
    add_rows(
        [&](int row, int channel) {
          return sum(row, channel) - .5 * row_count(row) * turned_mean(row, channel);
        },
        [&](int row, int channel) { return turned_mean(row, channel); }, x);
    constexpr int stride = HeadDim + 1;
#pragma unroll
    for (int n = 0; n < own; ++n) memory_[Matrix::row(n) * stride + column] = x[n];
    __syncthreads();
    const double *moment = doubles_ + layout_.key_moment.first;
#pragma unroll
    for (int n = 0; n < own; ++n) {
      const int row = Matrix::row(n);
      const double about_means =
          moment[moment_index(row, column)] - (x[n] + memory_[column * stride + row]);
      x[n] = about_means / count() - rest_[row] * rest_[column];
    }
    __syncthreads();
  }

  __device__ void put_diagonal(const double (&x)[own]) const {
    const int column = Matrix::column();
#pragma unroll
    for (int n = 0; n < own; ++n) {
      if (Matrix::row(n) == column) diagonal_[column] = x[n];
    }
    __syncthreads();
  }

  /// See effective_rank() and correlation(), of what the threads have of a covariance.
  __device__ void note_keys(const double (&x)[own]) const {
    const int column = Matrix::column(), thread = static_cast<int>(threadIdx.x);
    put_diagonal(x);
    double trace = 0, directions = 0;
    if (thread < HeadDim) {
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
      const double correlation = x[n] * inverse_[Matrix::row(n)] * inverse_[column];
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
  __device__ double put_metric(const Matrix &q) const {
    constexpr float ridge = .1f;
    const int column = Matrix::column(), thread = static_cast<int>(threadIdx.x);
    const float *moment = floats_ + layout_.query_moment.first;
    const auto entry = [&](int row) { return moment[moment_index(row, column)]; };
    double squares = 0;
#pragma unroll 4
    for (int n = 0; n < own; ++n) {
      const auto of_queries = static_cast<double>(entry(Matrix::row(n)));
      squares += of_queries * of_queries;
    }
    squares = block_sum(squares);
    const double trace = block_sum(thread < HeadDim ? static_cast<double>(entry(thread)) : 0.0);
    const bool keys_alone = trace == 0;
    const double mean = keys_alone ? 1 : trace / HeadDim;
#pragma unroll 4
    for (int n = 0; n < own; ++n) {
      const bool own_channel = Matrix::row(n) == column;
      float metric = static_cast<float>(static_cast<double>(entry(Matrix::row(n))) / mean);
      if (own_channel) metric += keys_alone ? 1.0f : ridge;
      q(Matrix::row(n), column) = metric;
      if (own_channel) to_.metric[column] = metric;
    }
    if (thread == 0) to_.query_rank = squares > 0 ? trace * trace / squares : 0;
    __syncthreads();
    return mean;
  }

  /// Over the threads of the block, the same for all.
  __device__ double block_sum(double x) const {
    constexpr int warps = Matrix::threads / warp_lanes;
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
  float *factor_;
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
