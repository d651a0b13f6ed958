#pragma once

// Moments of the queries and keys of one KV head: all that a coding learns
// from.

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <vector>

#include "squat/config.hpp"
#include "squat/instruction_set.hpp"

namespace squat::inline SQUAT_API_NAMESPACE {

/// Additive moments of the queries (of every query head that shares the KV
/// head) and keys of one KV head, in double precision. Two of them merge into
/// what one would hold that had seen the tokens of both. moments.hpp adds tokens
/// to them and says what codings read from them.
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
      : head_dim_(head_dim),
        rows_(rows),
        group_(group),
        sums_(static_cast<std::size_t>(key_range() - queries() + head_dim)),
        low_(static_cast<std::size_t>(head_dim)),
        high_(static_cast<std::size_t>(head_dim)) {}

  Index head_dim() const { return head_dim_; }
  Index rows() const { return rows_; }

  // The sums are one array behind the other, in this order; each function says where one begins.
  static constexpr Index queries() { return 0; }                               ///< [1], how many
  static constexpr Index groups() { return 1; }                                ///< [1], full ones
  static constexpr Index query_moment() { return 2; }                          ///< [head_dim, head_dim]
  Index key_moment() const { return query_moment() + head_dim_ * head_dim_; }  ///< the same
  Index row_sums() const { return key_moment() + head_dim_ * head_dim_; }  ///< [rows, head_dim], of keys
  Index row_counts() const { return row_sums() + rows_ * head_dim_; }      ///< [rows], of keys
  Index key_range() const { return row_counts() + rows_; }  ///< [head_dim], over full groups

  double *sums(Index first) { return sums_.data() + first; }
  const double *sums(Index first) const { return sums_.data() + first; }

  /// How many keys were added.
  double keys() const {
    double count = 0;
    for (Index row = 0; row < rows_; ++row) count += sums(row_counts())[row];
    return count;
  }

  /// Takes in the next key [head_dim], for the ranges of channels.
  void add_range(const float *key) {
    for (std::size_t i = 0; i < low_.size(); ++i) {
      low_[i] = in_group_ == 0 ? key[i] : std::min(low_[i], key[i]);
      high_[i] = in_group_ == 0 ? key[i] : std::max(high_[i], key[i]);
    }
    if (++in_group_ < group_) return;
    double *range = sums(key_range());
    for (std::size_t i = 0; i < low_.size(); ++i) range[i] += static_cast<double>(high_[i] - low_[i]);
    *sums(groups()) += 1;
    in_group_ = 0;
  }

  /// The mean range (largest minus least) of each key channel over a group,
  /// [head_dim]; of what the first group has brought so far while none is full,
  /// ones before the first key.
  std::vector<double> mean_range() const {
    std::vector<double> range(low_.size(), 1.0);
    const double full = *sums(groups());
    for (std::size_t i = 0; i < range.size(); ++i) {
      if (full > 0) {
        range[i] = sums(key_range())[i] / full;
      } else if (in_group_ > 0) {
        range[i] = static_cast<double>(high_[i] - low_[i]);
      }
    }
    return range;
  }

  void merge(const QueryStatistics &other) {
    SQUAT_ASSERT(head_dim() == other.head_dim() && rows() == other.rows());
    add_sums(other.sums_.data());
  }

  /// Adds sums over other tokens, made elsewhere, all arrays in their order.
  void add_sums(const double *sums) {
    for (double &sum : sums_) sum += *sums++;
  }

  /// Calls visit(data, size) for every array of sums in its order.
  template <class Self, class Visit>
  static void visit_sums(Self &self, Visit &&visit) {
    const Index d = self.head_dim_, rows = self.rows_;
    auto *data = self.sums_.data();
    for (const Index size : {Index{1}, Index{1}, d * d, d * d, d * rows, rows, d}) {
      visit(data, size);
      data += size;
    }
  }

  /// Bytes held for a head of that size.
  static std::size_t bytes(Index head_dim, Index rows) {
    const auto d = static_cast<std::size_t>(head_dim), r = static_cast<std::size_t>(rows);
    return sizeof(QueryStatistics) + (2 + 2 * d * d + d * r + r + d) * sizeof(double) +
           2 * d * sizeof(float);
  }

 private:
  Index head_dim_;
  Index rows_;
  Index group_;
  std::vector<double> sums_;
  std::vector<float> low_, high_;  // of the group that is filling, [head_dim]
  Index in_group_ = 0;             // its tokens so far
};

}  // namespace squat::inline SQUAT_API_NAMESPACE
