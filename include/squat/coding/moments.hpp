#pragma once

// What tokens add to a head's statistics, and the mean and covariance that
// codings read from them.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "squat/coding/hadamard.hpp"
#include "squat/coding/matrix_product.hpp"
#include "squat/coding/query_statistics.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/core/config.hpp"
#include "squat/core/element_range.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Rows of one head as the statistics take them: [tokens, head_dim], row-major.
using HeadRows = Eigen::Map<const RowMatrix>;

}  // namespace squat::inline SQUAT_CPU_NAMESPACE

namespace squat::detail::inline SQUAT_CPU_NAMESPACE {

/// So few rows are added to a moment without a matrix of their own: nothing is allocated.
inline constexpr Index few_rows = 32;
/// Sums of a row of the moment that are added to together: heads of a cache are padded to a multiple.
inline constexpr Index few_rows_lanes = 16;

/// sums += rows^T rows, a packed triangle, of few rows of whole lanes. Products are added up before they
/// meet the sums, which round.
template <class Real, class Sum>
void add_moment_of_few(const HeadRows &rows, Sum *sums) {
  constexpr Index lanes = few_rows_lanes;
  const Index d = rows.cols();
  for (Index i = 0; i < d; sums += ++i) {
    for (Index j = 0; j <= i; j += lanes) {
      Real products[lanes] = {};
      for (Index row = 0; row < rows.rows(); ++row) {
        const float *x = rows.data() + row * d;
        const auto factor = static_cast<Real>(x[i]);
        for (Index lane = 0; lane < lanes; ++lane)
          products[lane] += factor * static_cast<Real>(x[j + lane]);
      }
      const Index count = std::min(lanes, i + 1 - j);
      for (Index lane = 0; lane < count; ++lane)
        sums[j + lane] = static_cast<Sum>(static_cast<Real>(sums[j + lane]) + products[lane]);
    }
  }
}

/// sums += rows^T rows, a packed triangle.
template <class Real, class Sum>
void add_moment(HeadRows rows, std::span<Sum> sums) {
  if (rows.rows() <= few_rows && rows.cols() % few_rows_lanes == 0)
    return add_moment_of_few<Real>(rows, sums.data());
  const Matrix<Real> x = rows.template cast<Real>();
  const Matrix<Real> moment = matrix_product<Real>(transposed<Real>(x), x);
  auto sum = sums.begin();
  for (Index i = 0; i < moment.rows(); ++i) {
    for (Index j = 0; j <= i; ++j, ++sum) {
      *sum = static_cast<Sum>(static_cast<double>(*sum) + static_cast<double>(moment(j, i)));
    }
  }
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

}  // namespace squat::detail::inline SQUAT_CPU_NAMESPACE

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// C += sum q q^T. A token's queries may come several times, as several tiles
/// see them.
template <class Real = double>
void add_queries(QueryStatistics &statistics, HeadRows queries) {
  detail::add_moment<Real>(queries, statistics.sums(&HeadSums::query_moment));
  statistics.sums(&HeadSums::queries)[0] += static_cast<double>(queries.rows());
}

/// Adds keys in the order of their tokens, the first of which stands in row `row`
/// of its tile.
template <class Real = double>
void add_keys(QueryStatistics &statistics, HeadRows keys, Index row) {
  const Index d = statistics.head_dim();
  detail::add_moment<Real>(keys, statistics.sums(&HeadSums::key_moment));
  double *key_sum = statistics.sums(&HeadSums::key_sum).data();
  double *row_counts = statistics.sums(&HeadSums::row_counts).data();
  float *row_sums = statistics.sums(&HeadSums::row_sums).data();
  for (Index token = 0; token < keys.rows(); ++token) {
    const float *key = keys.data() + token * d;
    const Index tile_row = (row + token) % statistics.rows();
    float *row_sum = row_sums + tile_row * d;
    for (Index i = 0; i < d; ++i) {
      key_sum[i] += static_cast<double>(key[i]);
      row_sum[i] += key[i];
    }
    row_counts[tile_row] += 1;
    statistics.add_range(key);
  }
}

/// Adds values to their sum.
inline void add_values(QueryStatistics &statistics, const HeadRows &values) {
  double *sum = statistics.sums(&HeadSums::value_sum).data();
  for (Index token = 0; token < values.rows(); ++token) {
    for (Index i = 0; i < values.cols(); ++i) sum[i] += static_cast<double>(values(token, i));
  }
  statistics.sums(&HeadSums::values)[0] += static_cast<double>(values.rows());
}

/// C += sum x x^T of queries that were multiplied by the square root of their weights.
template <class Real = double>
void add_weighted_queries(QueryStatistics &statistics, HeadRows queries) {
  detail::add_moment<Real>(queries, statistics.sums(&HeadSums::weighted_moment));
}

/// C = sum q q^T, [head_dim, head_dim]: HeadSums::query_moment, or the weighted_moment.
template <class Real = double>
Matrix<Real> query_moment(const QueryStatistics &statistics,
                          SumArray<float> HeadSums::*sums_of = &HeadSums::query_moment) {
  const Index d = statistics.head_dim();
  const std::span<const float> sums = statistics.sums(sums_of);
  Matrix<Real> moment(d, d);
  auto sum = sums.begin();
  for (Index i = 0; i < d; ++i) {
    for (Index j = 0; j <= i; ++j, ++sum) moment(i, j) = moment(j, i) = static_cast<Real>(*sum);
  }
  return moment;
}

/// The metric C = sum w q q^T of keys, where attention was weighed. As far as queries that say so are
/// few beside head_dim, all queries say in which directions errors matter: of n queries, C counts n
/// parts of n + head_dim, and sum q q^T, brought to its mean diagonal, the rest.
template <class Real = double>
Matrix<Real> attention_metric(const QueryStatistics &statistics) {
  const Index d = statistics.head_dim();
  Matrix<Real> metric = query_moment<Real>(statistics, &HeadSums::weighted_moment);
  const Matrix<Real> all = query_moment<Real>(statistics);
  Real trace = 0, trace_of_all = 0;
  for (Index i = 0; i < d; ++i) {
    trace += metric(i, i);
    trace_of_all += all(i, i);
  }
  const auto n = static_cast<Real>(statistics.sums(&HeadSums::far_queries)[0]),
             channels = static_cast<Real>(d);
  const Real own = n / (n + channels), rest = channels / (n + channels) * trace / trace_of_all;
  for (Index i = 0; i < d * d; ++i) metric.data()[i] = own * metric.data()[i] + rest * all.data()[i];
  return metric;
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE

namespace squat::detail::inline SQUAT_CPU_NAMESPACE {

/// The sums of keys by row, [rows, head_dim]. What rounding has taken off them
/// all together is given back, an equal share to every key: then they add up to
/// the sum of all keys, and with one row they are that sum.
inline std::vector<double> sums_by_row(const QueryStatistics &statistics) {
  const Index d = statistics.head_dim();
  const std::span<const float> rounded = statistics.sums(&HeadSums::row_sums);
  const std::span<const double> key_sum = statistics.sums(&HeadSums::key_sum),
                                row_counts = statistics.sums(&HeadSums::row_counts);
  std::vector<double> sums(rounded.begin(), rounded.end()), lost(key_sum.begin(), key_sum.end());
  const double count = std::max(statistics.keys(), 1.0);
  const auto for_each_row = [&](auto &&visit) {
    for (Index row = 0; row < statistics.rows(); ++row) visit(row, sums.data() + row * d);
  };
  for_each_row([&](Index, const double *of_row) {
    for (Index i = 0; i < d; ++i) lost[static_cast<std::size_t>(i)] -= of_row[i];
  });
  for_each_row([&](Index row, double *of_row) {
    const double share = row_counts[static_cast<std::size_t>(row)] / count;
    for (Index i = 0; i < d; ++i) of_row[i] += share * lost[static_cast<std::size_t>(i)];
  });
  return sums;
}

}  // namespace squat::detail::inline SQUAT_CPU_NAMESPACE

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// The mean of `count` values of that sum, [head_dim], rotated as values are. Empty where there were
/// none, or where the sums are of no values that a cache takes.
inline std::vector<float> rotated_value_mean(std::span<const double> sums, double count) {
  std::vector<float> mean;
  for (const double sum : sums) {
    if (!(std::abs(sum) <= static_cast<double>(largest_element) * count) || count == 0) return {};
    mean.push_back(static_cast<float>(sum / count));
  }
  rotate_hadamard(mean.data(), static_cast<Index>(mean.size()));
  return mean;
}
inline std::vector<float> rotated_value_mean(const QueryStatistics &statistics) {
  return rotated_value_mean(statistics.sums(&HeadSums::value_sum),
                            statistics.sums(&HeadSums::values)[0]);
}

/// A mean key as pages take it, in float. Empty where it is none of keys that a cache takes, as sums
/// from a file may say.
inline std::vector<float> rounded_key_mean(std::span<const double> mean) {
  std::vector<float> rounded;
  for (const double x : mean) {
    rounded.push_back(static_cast<float>(x));
    if (!(std::abs(rounded.back()) <= largest_element)) return {};
  }
  return rounded;
}

/// The sums of a head's keys.
struct KeySums {
  std::vector<double> by_row;       ///< as they stand in the tile, [rows, head_dim]
  std::vector<double> turned_back;  ///< the same as row 0 has them: before their rotary embedding
  std::vector<double> mean;         ///< of all, as row 0 has them, [head_dim]

  /// frame: null without a tile frame.
  KeySums(const QueryStatistics &statistics, const TileFrame *frame)
      : by_row(detail::sums_by_row(statistics)),
        turned_back(by_row),
        mean(static_cast<std::size_t>(statistics.head_dim())) {
    const Index d = statistics.head_dim();
    const double count = std::max(statistics.keys(), 1.0);
    for (Index row = 0; row < statistics.rows(); ++row) {
      double *of_row = turned_back.data() + row * d;
      detail::turn_in_frame(of_row, frame, row, -1);
      for (Index i = 0; i < d; ++i) mean[static_cast<std::size_t>(i)] += of_row[i] / count;
    }
  }
};

/// The covariance of the keys about their turned mean, [head_dim, head_dim]. frame: null without a tile
/// frame.
template <class Real = double>
Matrix<Real> key_covariance(const QueryStatistics &statistics, const TileFrame *frame,
                            const KeySums &keys) {
  const Index d = statistics.head_dim(), rows = statistics.rows();
  const std::vector<double> &mean = keys.mean;
  const std::span<const double> row_counts = statistics.sums(&HeadSums::row_counts);
  const double count = std::max(statistics.keys(), 1.0);
  // sum (x - m_j)(x - m_j)^T = sum x x^T - sum_j (s_j m_j^T + m_j s_j^T - n_j m_j m_j^T)
  std::vector<double> turned(mean), rest(mean.size());
  Matrix<Real> means(rows, d), half_way(d, rows);
  const double *sums = keys.by_row.data();
  for (Index row = 0; row < rows; ++row, sums += d) {
    turned = mean;
    detail::turn_in_frame(turned.data(), frame, row, 1);
    const double keys_of_row = row_counts[static_cast<std::size_t>(row)];
    for (Index i = 0; i < d; ++i) {
      const double m = turned[static_cast<std::size_t>(i)], weighted = m * keys_of_row;
      means(row, i) = static_cast<Real>(m);
      half_way(i, row) = static_cast<Real>(sums[i] - .5 * weighted);
      rest[static_cast<std::size_t>(i)] += (sums[i] - weighted) / count;
    }
  }
  const Matrix<Real> crossed = matrix_product<Real>(half_way, means);
  const std::span<const double> moment = statistics.sums(&HeadSums::key_moment);
  auto sum = moment.begin();
  Matrix<Real> covariance(d, d);
  for (Index i = 0; i < d; ++i) {
    for (Index j = 0; j <= i; ++j, ++sum) {
      const double about_means = *sum - static_cast<double>(crossed(i, j) + crossed(j, i));
      const double off = rest[static_cast<std::size_t>(i)] * rest[static_cast<std::size_t>(j)];
      covariance(i, j) = covariance(j, i) = static_cast<Real>(about_means / count - off);
    }
  }
  return covariance;
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
