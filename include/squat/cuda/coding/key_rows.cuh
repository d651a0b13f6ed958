#pragma once

// Sums over the rows of a head's tile, by a block: means of keys, and products of what follows from
// them.

#include <cuda_runtime.h>

#include "squat/coding/query_statistics.hpp"
#include "squat/cuda/coding/block_matrix.cuh"
#include "squat/cuda/coding/moments.cuh"
#include "squat/cuda/kernels/rotary.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// The sums of keys in the rows of a head's tile. A thread has two channels that turn together, and of
/// every sixteen rows two that follow each other, whose angles it reads in one piece.
template <int HeadDim>
class KeyRows {
 public:
  static constexpr int threads = BlockMatrix<HeadDim>::threads, units = HeadDim / 2;
  static constexpr int parts = threads / units, of_thread = 2, tile_rows = parts * of_thread;
  static constexpr int tile_doubles = 2 * tile_rows * HeadDim;  ///< of shared memory, for add_products()
  static_assert(6 * threads <= tile_doubles);                   // find_means() has as much

  /// Means [HeadDim] in shared memory; memory: [tile_doubles] there too.
  struct Means {
    double *lost;  ///< what rounding has taken off the rows' sums, a key
    double *mean;  ///< of keys as row 0 has them
    double *rest;  ///< of keys beside the turned mean
  };
  __device__ KeyRows(const HeadSums &layout, const double *doubles, const float *floats,
                     const double *row_counts, double keys, const TileTables &tables, const Means &means,
                     double *memory)
      : layout_(layout),
        key_sum_(doubles + layout.key_sum.first),
        row_sums_(floats + layout.row_sums.first),
        row_counts_(row_counts),
        count_(fmax(keys, 1.0)),
        tables_(tables),
        channels_(unit_channels(tables, unit())),
        means_(means),
        memory_(memory) {}

  /// Makes the means, of one sweep over the rows: with x the sum of n keys in a row as it was rounded,
  /// R(row) its turn and l what was lost,
  ///
  ///   count mean = sum R(-row) (x + n l) = sum R(-row) x + (sum n R(-row)) l,
  ///   count rest = sum (x + n l - n R(row) mean) = all keys' sum - (sum n R(row)) mean.
  __device__ void find_means() const {
    double2 all{}, back{}, turn{};  // sums of x, R(-row) x and n R(row)
#pragma unroll 2
    for (int first = first_row(); first < layout_.rows; first += tile_rows) {
      Row rows[of_thread];
      fetch(first, rows);
#pragma unroll
      for (const Row &row : rows) {
        const double2 x = rounded(row), turned = turned_by(turn_of(row, -1), x);
        all = {all.x + x.x, all.y + x.y};
        back = {back.x + turned.x, back.y + turned.y};
        turn.x += row.keys * static_cast<double>(row.angle.x);
        turn.y += row.keys * static_cast<double>(row.angle.y);
      }
    }
    auto &of_part = reinterpret_cast<double(&)[6][parts][units]>(*memory_);
    const double sums[] = {all.x, all.y, back.x, back.y, turn.x, turn.y};
#pragma unroll
    for (int i = 0; i < 6; ++i) of_part[i][part()][unit()] = sums[i];
    __syncthreads();
    if (part() == 0) {
      double total[6] = {};
#pragma unroll
      for (int i = 0; i < 6; ++i) {
        for (int other = 0; other < parts; ++other) total[i] += of_part[i][other][unit()];
      }
      const double2 sum = at(key_sum_), lost = over_count({sum.x - total[0], sum.y - total[1]});
      const double2 of_lost = turned_by({total[4], -total[5]}, lost);
      const double2 mean = over_count({total[2] + of_lost.x, total[3] + of_lost.y});
      const double2 of_mean = turned_by({total[4], total[5]}, mean);
      put(means_.lost, lost);
      put(means_.mean, mean);
      put(means_.rest, over_count({sum.x - of_mean.x, sum.y - of_mean.y}));
    }
    __syncthreads();
  }

  /// x = the sum over rows of d d^T, where d is how much a row's mean deviates from that of all, both
  /// before their rotary embedding, times the root of its count.
  __device__ void add_deviations(float (&x)[BlockMatrix<HeadDim>::own]) const {
    const double2 mean = at(means_.mean);
    add_products<float>(
        [&](const Row &row) -> Factors<float2> {
          if (row.keys == 0) return {};
          const double2 sum = turned_by(turn_of(row, -1), whole(row));
          const float root = sqrtf(static_cast<float>(row.keys));
          const float2 deviation = {static_cast<float>(sum.x - row.keys * mean.x) / root,
                                    static_cast<float>(sum.y - row.keys * mean.y) / root};
          return {deviation, deviation};
        },
        x);
  }

  /// x = the sum over rows of (s - n / 2 m) m^T, where s is the sum of n keys and m the turned mean:
  /// with its transpose, what the keys' moment about their means lacks.
  __device__ void add_means(double (&x)[BlockMatrix<HeadDim>::own]) const {
    const double2 mean = at(means_.mean);
    add_products<double>(
        [&](const Row &row) -> Factors<double2> {
          const double2 sum = whole(row), of_row = turned_by(turn_of(row, 1), mean);
          const double half = .5 * row.keys;
          return {{sum.x - half * of_row.x, sum.y - half * of_row.y}, of_row};
        },
        x);
  }

 private:
  /// What a thread reads of a row; behind the last, of no keys.
  struct Row {
    float2 sum, angle;
    double keys;
  };
  template <class Pair>
  struct Factors {
    Pair left, right;
  };

  __device__ static int unit() { return static_cast<int>(threadIdx.x) % units; }
  __device__ static int part() { return static_cast<int>(threadIdx.x) / units; }
  __device__ static int first_row() { return of_thread * part(); }

  __device__ double2 at(const double *vector) const {
    return {vector[channels_.x], vector[channels_.y]};
  }
  __device__ void put(double *vector, double2 x) const {
    vector[channels_.x] = x.x;
    vector[channels_.y] = x.y;
  }
  __device__ double2 over_count(double2 x) const { return {x.x / count_, x.y / count_}; }

  /// R(sign row), cosine and sine.
  __device__ static double2 turn_of(const Row &row, int sign) {
    return {static_cast<double>(row.angle.x),
            static_cast<double>(sign) * static_cast<double>(row.angle.y)};
  }
  __device__ static double2 turned_by(double2 turn, double2 x) {
    return {x.x * turn.x - x.y * turn.y, x.x * turn.y + x.y * turn.x};
  }

  /// Rows `first` and what follows; a frame has an even number of them.
  __device__ void fetch(int first, Row (&rows)[of_thread]) const {
    static_assert(of_thread == 2);
    float2 cosines = {1, 1}, sines = {0, 0};
    if (tables_.frame > 0 && unit() < tables_.pairs && first < layout_.rows) {
      const float *angles = tables_.angles + 2ll * unit() * tables_.frame + first;
      cosines = *reinterpret_cast<const float2 *>(angles);
      sines = *reinterpret_cast<const float2 *>(angles + tables_.frame);
    }
#pragma unroll
    for (int n = 0; n < of_thread; ++n) {
      rows[n] = {{0, 0}, n == 0 ? float2{cosines.x, sines.x} : float2{cosines.y, sines.y}, 0};
      if (first + n >= layout_.rows) continue;
      const float *sums = row_sums_ + (first + n) * HeadDim;
      rows[n].sum = {sums[channels_.x], sums[channels_.y]};
      rows[n].keys = row_counts_[first + n];
    }
  }

  /// The sum of keys in a row as it was rounded; of the only row it was not.
  __device__ double2 rounded(const Row &row) const {
    if (layout_.rows == 1) return row.keys > 0 ? at(key_sum_) : double2{0, 0};
    return {static_cast<double>(row.sum.x), static_cast<double>(row.sum.y)};
  }
  /// And with an equal share for every key of what rounding has taken off all of them.
  __device__ double2 whole(const Row &row) const {
    const double2 sum = rounded(row), lost = at(means_.lost);
    return {sum.x + row.keys * lost.x, sum.y + row.keys * lost.y};
  }

  /// x = the sum over rows of left(i) right(j), of the thread's elements (i, j); factors(row) is left
  /// and right of its channels. While a tile is multiplied, the next is on its way.
  template <class Real, class OfRow>
  __device__ void add_products(OfRow &&factors, Real (&x)[BlockMatrix<HeadDim>::own]) const {
    using Matrix = BlockMatrix<HeadDim>;
    constexpr int wide = 16 / sizeof(Real);
    struct alignas(16) Wide {
      Real x[wide];
    };
    Real *lefts = reinterpret_cast<Real *>(memory_), *rights = lefts + tile_rows * HeadDim;
#pragma unroll
    for (Real &sum : x) sum = 0;
    Row next[of_thread];
    fetch(first_row(), next);
#pragma unroll 1
    for (int first = 0; first < layout_.rows; first += tile_rows) {
      __syncthreads();
#pragma unroll
      for (int n = 0; n < of_thread; ++n) {
        const auto [left, right] = factors(next[n]);
        const int place = (first_row() + n) * HeadDim;
        lefts[place + channels_.x] = left.x;
        lefts[place + channels_.y] = left.y;
        rights[place + channels_.x] = right.x;
        rights[place + channels_.y] = right.y;
      }
      fetch(first + tile_rows + first_row(), next);
      __syncthreads();
#pragma unroll 2
      for (int k = 0; k < tile_rows; ++k) {
        const Wide *left = reinterpret_cast<const Wide *>(lefts + k * HeadDim + Matrix::first_row());
        Real of_rows[Matrix::rows], of_columns[Matrix::columns];
#pragma unroll
        for (int n = 0; n < Matrix::rows / wide; ++n) {
          const Wide some = left[n];
#pragma unroll
          for (int i = 0; i < wide; ++i) of_rows[n * wide + i] = some.x[i];
        }
#pragma unroll
        for (int n = 0; n < Matrix::columns; ++n)
          of_columns[n] = rights[k * HeadDim + Matrix::column(n * Matrix::rows)];
        add_outer_product<HeadDim>(x, of_rows, of_columns);
      }
    }
    __syncthreads();
  }

  const HeadSums &layout_;
  const double *key_sum_;
  const float *row_sums_;
  const double *row_counts_;
  double count_;
  const TileTables &tables_;
  int2 channels_;
  Means means_;
  double *memory_;
};

}  // namespace squat::cuda
