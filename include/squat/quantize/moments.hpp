#pragma once

// What tokens add to a head's statistics, and the mean and covariance that
// codings read from them.

#include <Eigen/Core>
#include <algorithm>
#include <vector>

#include "squat/attention/rotary.hpp"
#include "squat/config.hpp"
#include "squat/instruction_set.hpp"
#include "squat/quantize/matrix_product.hpp"
#include "squat/quantize/query_statistics.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Rows of one head as the statistics take them: [tokens, head_dim], row-major.
using HeadRows = Eigen::Map<const RowMatrix>;

namespace detail {

/// sums += rows^T rows, [head_dim, head_dim].
template <class Real>
void add_moment(HeadRows rows, double *sums) {
  if (rows.rows() == 0) return;
  const Matrix<Real> x = rows.template cast<Real>();
  const Matrix<Real> moment = matrix_product<Real>(transposed<Real>(x), x);
  for (Index i = 0; i < moment.size(); ++i) sums[i] += static_cast<double>(moment.data()[i]);
}

/// x becomes R(sign * row) x.
inline void turn_in_frame(double *x, const TileFrame *frame, Index row, int sign) {
  if (frame == nullptr) return;
  const RotaryTable &table = frame->table();
  for (Index pair = 0; pair < table.pair_count(); ++pair) {
    const auto [a, b] = table.channels(pair);
    const double c = static_cast<double>(frame->angles(row)[2 * pair * frame->rows()]);
    const double s = sign * static_cast<double>(frame->angles(row)[(2 * pair + 1) * frame->rows()]);
    const double from_a = x[a];
    x[a] = from_a * c - x[b] * s;
    x[b] = from_a * s + x[b] * c;
  }
}

}  // namespace detail

/// C += sum q q^T. A token's queries may come several times, as several tiles
/// see them.
template <class Real = double>
void add_queries(QueryStatistics &statistics, HeadRows queries) {
  detail::add_moment<Real>(queries, statistics.sums(QueryStatistics::query_moment()));
  *statistics.sums(QueryStatistics::queries()) += static_cast<double>(queries.rows());
}

/// Adds keys in the order of their tokens, the first of which stands in row `row`
/// of its tile.
template <class Real = double>
void add_keys(QueryStatistics &statistics, HeadRows keys, Index row) {
  const Index d = statistics.head_dim();
  detail::add_moment<Real>(keys, statistics.sums(statistics.key_moment()));
  for (Index token = 0; token < keys.rows(); ++token) {
    const float *key = keys.data() + token * d;
    const Index tile_row = (row + token) % statistics.rows();
    double *sum = statistics.sums(statistics.row_sums()) + tile_row * d;
    for (Index i = 0; i < d; ++i) sum[i] += static_cast<double>(key[i]);
    statistics.sums(statistics.row_counts())[tile_row] += 1;
    statistics.add_range(key);
  }
}

/// C = sum q q^T, [head_dim, head_dim].
template <class Real = double>
Matrix<Real> query_moment(const QueryStatistics &statistics) {
  const Index d = statistics.head_dim();
  Matrix<Real> moment(d, d);
  std::copy_n(statistics.sums(QueryStatistics::query_moment()), d * d, moment.data());
  return moment;
}

/// The mean of the keys as row 0 of a tile has them, [head_dim]: of keys
/// before their rotary embedding. frame: null without a tile frame.
inline std::vector<double> key_mean(const QueryStatistics &statistics, const TileFrame *frame) {
  std::vector<double> mean(static_cast<std::size_t>(statistics.head_dim())), of_row(mean);
  const double count = std::max(statistics.keys(), 1.0);
  const double *sums = statistics.sums(statistics.row_sums());
  for (Index row = 0; row < statistics.rows(); ++row, sums += statistics.head_dim()) {
    std::copy_n(sums, of_row.size(), of_row.data());
    detail::turn_in_frame(of_row.data(), frame, row, -1);
    for (std::size_t i = 0; i < mean.size(); ++i) mean[i] += of_row[i] / count;
  }
  return mean;
}

/// The covariance of the keys about their turned mean, [head_dim, head_dim].
template <class Real = double>
Matrix<Real> key_covariance(const QueryStatistics &statistics, const TileFrame *frame) {
  const Index d = statistics.head_dim(), rows = statistics.rows();
  const std::vector<double> mean = key_mean(statistics, frame);
  const double count = std::max(statistics.keys(), 1.0);
  // sum (x - m_j)(x - m_j)^T = sum x x^T - sum_j (s_j m_j^T + m_j s_j^T - n_j m_j m_j^T)
  std::vector<double> turned(mean), rest(mean.size());
  Matrix<Real> means(rows, d), half_way(d, rows);
  const double *sums = statistics.sums(statistics.row_sums());
  for (Index row = 0; row < rows; ++row, sums += d) {
    turned = mean;
    detail::turn_in_frame(turned.data(), frame, row, 1);
    const double keys = statistics.sums(statistics.row_counts())[row];
    for (Index i = 0; i < d; ++i) {
      const double m = turned[static_cast<std::size_t>(i)], weighted = m * keys;
      means(row, i) = static_cast<Real>(m);
      half_way(i, row) = static_cast<Real>(sums[i] - .5 * weighted);
      rest[static_cast<std::size_t>(i)] += (sums[i] - weighted) / count;
    }
  }
  const Matrix<Real> crossed = matrix_product<Real>(half_way, means);
  const double *moment = statistics.sums(statistics.key_moment());
  Matrix<Real> covariance(d, d);
  for (Index j = 0; j < d; ++j) {
    for (Index i = 0; i < d; ++i) {
      const double about_means = moment[j * d + i] - crossed(i, j) - crossed(j, i);
      const double off = rest[static_cast<std::size_t>(i)] * rest[static_cast<std::size_t>(j)];
      covariance(i, j) = static_cast<Real>(about_means / count - off);
    }
  }
  return covariance;
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
