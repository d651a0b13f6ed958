#pragma once

// Moments of the queries and keys of one KV head: all that a coding learns
// from.

#include <Eigen/Core>
#include <algorithm>

#include "squat/attention/rotary.hpp"
#include "squat/config.hpp"
#include "squat/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Rows of one head as the statistics take them: [tokens, head_dim], row-major.
using HeadRows = Eigen::Map<const RowMatrix>;

/// Additive moments of the queries (of every query head that shares the KV
/// head) and keys of one KV head, in double precision. Two of them merge into
/// what one would hold that had seen the tokens of both.
///
/// Keys come in the frame they are coded in. In a tile frame the mean key turns
/// from row to row, so that beside sum x x^T the sum of each row is kept: all
/// that the covariance about the turned mean asks for, with the mean known only
/// at the end.
class QueryStatistics {
 public:
  /// `group`: tokens over which the range of a key channel is taken. `rows`:
  /// rows of the tile frame, 1 without one.
  QueryStatistics(Index head_dim, Index group, Index rows)
      : group_(group),
        query_moment_(Eigen::MatrixXd::Zero(head_dim, head_dim)),
        key_moment_(Eigen::MatrixXd::Zero(head_dim, head_dim)),
        row_sums_(Eigen::MatrixXd::Zero(head_dim, rows)),
        row_counts_(Eigen::ArrayXd::Zero(rows)),
        key_range_(Eigen::ArrayXd::Zero(head_dim)),
        low_(head_dim),
        high_(head_dim) {}

  /// C += sum q q^T. A token's queries may come several times, as several tiles
  /// see them.
  void add_queries(HeadRows queries) {
    add_moment(queries, query_moment_);
    queries_ += static_cast<double>(queries.rows());
  }

  /// Keys in the order of their tokens, the first of which stands in row `row`
  /// of its tile.
  void add_keys(HeadRows keys, Index row) {
    add_moment(keys, key_moment_);
    for (Index token = 0; token < keys.rows(); ++token) {
      const Index tile_row = (row + token) % rows();
      row_sums_.col(tile_row) += keys.row(token).transpose().cast<double>();
      row_counts_[tile_row] += 1;
      add_range(keys.row(token).transpose().array());
    }
  }

  void merge(const QueryStatistics &other) {
    SQUAT_ASSERT(head_dim() == other.head_dim() && rows() == other.rows());
    query_moment_ += other.query_moment_;
    key_moment_ += other.key_moment_;
    row_sums_ += other.row_sums_;
    row_counts_ += other.row_counts_;
    key_range_ += other.key_range_;
    queries_ += other.queries_;
    groups_ += other.groups_;
  }

  /// Adds sums over other tokens, made elsewhere, in the order of visit_sums().
  void add_sums(const double *sums) {
    visit_sums(*this, [&](double *data, Index size) {
      Eigen::Map<Eigen::ArrayXd>(data, size) += Eigen::Map<const Eigen::ArrayXd>(sums, size);
      sums += size;
    });
  }

  Index head_dim() const { return query_moment_.rows(); }
  Index rows() const { return row_counts_.size(); }
  double queries() const { return queries_; }
  double keys() const { return row_counts_.sum(); }

  /// C = sum q q^T, [head_dim, head_dim].
  const Eigen::MatrixXd &query_moment() const { return query_moment_; }

  /// The mean of the keys as row 0 of a tile has them, [head_dim]: of keys
  /// before their rotary embedding. frame: null without a tile frame.
  Eigen::VectorXd key_mean(const TileFrame *frame) const {
    Eigen::VectorXd sum = Eigen::VectorXd::Zero(head_dim());
    for (Index row = 0; row < rows(); ++row) sum += turned(row_sums_.col(row), frame, row, -1);
    return sum / std::max(keys(), 1.0);
  }

  /// The covariance of the keys about their turned mean, [head_dim, head_dim].
  Eigen::MatrixXd key_covariance(const TileFrame *frame) const {
    const Eigen::VectorXd mean = key_mean(frame);
    const double count = std::max(keys(), 1.0);
    Eigen::MatrixXd means(head_dim(), rows());
    for (Index row = 0; row < rows(); ++row) means.col(row) = turned(mean, frame, row, 1);
    // sum (x - m_j)(x - m_j)^T = sum x x^T - sum_j (s_j m_j^T + m_j s_j^T - n_j m_j m_j^T)
    const Eigen::MatrixXd weighted = means * row_counts_.matrix().asDiagonal();
    const Eigen::MatrixXd half_way = (row_sums_ - .5 * weighted) * means.transpose();
    const Eigen::VectorXd rest = (row_sums_ - weighted).rowwise().sum() / count;
    return (key_moment_ - half_way - half_way.transpose()) / count - rest * rest.transpose();
  }

  /// The mean range (largest minus least) of each key channel over a group,
  /// [head_dim]; of what the first group has brought so far while none is full,
  /// ones before the first key.
  Eigen::ArrayXd key_range() const {
    if (groups_ > 0) return key_range_ / groups_;
    if (in_group_ > 0) return (high_ - low_).cast<double>();
    return Eigen::ArrayXd::Ones(head_dim());
  }

  /// Calls visit(data, size) for every array of doubles that merge() adds up.
  template <class Self, class Visit>
  static void visit_sums(Self &self, Visit &&visit) {
    visit(&self.queries_, Index{1});
    visit(&self.groups_, Index{1});
    visit(self.query_moment_.data(), self.query_moment_.size());
    visit(self.key_moment_.data(), self.key_moment_.size());
    visit(self.row_sums_.data(), self.row_sums_.size());
    visit(self.row_counts_.data(), self.row_counts_.size());
    visit(self.key_range_.data(), self.key_range_.size());
  }

  /// Bytes held for a head of that size.
  static std::size_t bytes(Index head_dim, Index rows) {
    const auto d = static_cast<std::size_t>(head_dim), r = static_cast<std::size_t>(rows);
    return sizeof(QueryStatistics) + (2 * d * d + d * r + r + d) * sizeof(double) +
           2 * d * sizeof(float);
  }

 private:
  static void add_moment(HeadRows rows, Eigen::MatrixXd &moment) {
    if (rows.rows() == 0) return;
    const Eigen::MatrixXd x = rows.cast<double>();
    moment.selfadjointView<Eigen::Lower>().rankUpdate(x.transpose());
    moment.triangularView<Eigen::StrictlyUpper>() = moment.transpose();
  }

  void add_range(const Eigen::ArrayXf &key) {
    low_ = in_group_ == 0 ? key : low_.min(key).eval();
    high_ = in_group_ == 0 ? key : high_.max(key).eval();
    if (++in_group_ < group_) return;
    key_range_ += (high_ - low_).cast<double>();
    groups_ += 1;
    in_group_ = 0;
  }

  /// R(sign * row) x.
  static Eigen::VectorXd turned(Eigen::VectorXd x, const TileFrame *frame, Index row, int sign) {
    if (frame == nullptr) return x;
    const RotaryTable &table = frame->table();
    for (Index pair = 0; pair < table.pair_count(); ++pair) {
      const auto [a, b] = table.channels(pair);
      const double c = static_cast<double>(frame->angles(row)[2 * pair * frame->rows()]);
      const double s = sign * static_cast<double>(frame->angles(row)[(2 * pair + 1) * frame->rows()]);
      const double from_a = x[a];
      x[a] = from_a * c - x[b] * s;
      x[b] = from_a * s + x[b] * c;
    }
    return x;
  }

  Index group_;
  double queries_ = 0;
  double groups_ = 0;
  Index in_group_ = 0;
  Eigen::MatrixXd query_moment_;
  Eigen::MatrixXd key_moment_;
  Eigen::MatrixXd row_sums_;  // [head_dim, rows], of the keys in each row of a tile
  Eigen::ArrayXd row_counts_;
  Eigen::ArrayXd key_range_;  // summed over full groups
  Eigen::ArrayXf low_;        // of the group that is filling
  Eigen::ArrayXf high_;
};

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
