#pragma once

// Moments of the queries and keys of one KV head: all that a coding learns
// from.

#include <Eigen/Core>

#include "squat/config.hpp"

namespace squat {

/// Rows of one head as the statistics take them: [tokens, head_dim], row-major.
using HeadRows = Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;

/// Additive moments of the queries (of every query head that shares the KV
/// head) and keys of one KV head, in double precision. Two of them merge into
/// what one would hold that had seen the tokens of both.
class QueryStatistics {
 public:
  /// `group`: tokens over which the range of a key channel is taken.
  QueryStatistics(Index head_dim, Index group)
      : group_(group),
        query_moment_(Eigen::MatrixXd::Zero(head_dim, head_dim)),
        key_range_(Eigen::ArrayXd::Zero(head_dim)),
        low_(head_dim),
        high_(head_dim) {}

  /// C += sum q q^T.
  void add_queries(HeadRows queries) {
    const Eigen::MatrixXd rows = queries.cast<double>();
    query_moment_.noalias() += rows.transpose() * rows;
    queries_ += queries.rows();
  }

  /// Keys in the order of their tokens: the ranges of full groups are summed.
  void add_keys(HeadRows keys) {
    for (Index token = 0; token < keys.rows(); ++token) {
      const Eigen::ArrayXf key = keys.row(token).transpose().array();
      low_ = in_group_ == 0 ? key : low_.min(key).eval();
      high_ = in_group_ == 0 ? key : high_.max(key).eval();
      if (++in_group_ < group_) continue;
      key_range_ += (high_ - low_).cast<double>();
      ++groups_;
      in_group_ = 0;
    }
    keys_ += keys.rows();
  }

  void merge(const QueryStatistics &other) {
    SQUAT_ASSERT(head_dim() == other.head_dim());
    query_moment_ += other.query_moment_;
    key_range_ += other.key_range_;
    queries_ += other.queries_;
    keys_ += other.keys_;
    groups_ += other.groups_;
  }

  Index head_dim() const { return query_moment_.rows(); }
  Index queries() const { return queries_; }
  Index keys() const { return keys_; }

  /// C = sum q q^T, [head_dim, head_dim].
  const Eigen::MatrixXd &query_moment() const { return query_moment_; }

  /// The mean range (largest minus least) of each key channel over a group,
  /// [head_dim]; of what the first group has brought so far while none is full,
  /// ones before the first key.
  Eigen::ArrayXd key_range() const {
    if (groups_ > 0) return key_range_ / static_cast<double>(groups_);
    if (in_group_ > 0) return (high_ - low_).cast<double>();
    return Eigen::ArrayXd::Ones(head_dim());
  }

  /// Bytes held for a head of that size.
  static std::size_t bytes(Index head_dim) {
    const auto d = static_cast<std::size_t>(head_dim);
    return sizeof(QueryStatistics) + (d * d + d) * sizeof(double) + 2 * d * sizeof(float);
  }

 private:
  Index group_;
  Index queries_ = 0;
  Index keys_ = 0;
  Index groups_ = 0;
  Index in_group_ = 0;
  Eigen::MatrixXd query_moment_;
  Eigen::ArrayXd key_range_;  // summed over full groups
  Eigen::ArrayXf low_;        // of the group that is filling
  Eigen::ArrayXf high_;
};

}  // namespace squat
