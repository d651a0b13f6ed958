#pragma once

// Moments of the queries, keys and values of one KV head: all that a coding
// learns from.

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

#include "squat/coding/coding_record.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_API_NAMESPACE {

/// Neighbours among the sums of type Real that a head holds.
template <class Real>
struct SumArray {
  Index first, size;
  constexpr Index end() const { return first + size; }
};

/// Where a packed triangle, the lower one row by row, has an element on or below
/// its diagonal.
constexpr Index triangle_index(Index row, Index column) { return row * (row + 1) / 2 + column; }

/// The sums of a head: what they are, and where each array of them stands. The
/// doubles follow one another, and so do the floats. A kernel takes it by value.
///
/// Float suffices for query moments, which are used with a tenth of their mean
/// diagonal added to the diagonal, or more; and for sums of rows, of few keys
/// each, as `key_sum` tells what rounding has taken off all rows together. Beside
/// a mean of 300 deviations, the covariance is off by some 0.002 of the variance.
///
/// Key moments are doubles: where keys have a large bias (as in Qwen2.5), nearly
/// all of a moment is the square of the mean, and the covariance is what remains
/// without it. Float would leave that two digits, or none.
struct HeadSums {
  Index head_dim;
  Index rows;  ///< of the tile frame
  Index triangle = triangle_index(head_dim, 0);

  SumArray<double> queries{0, 1};                          ///< [1], how many
  SumArray<double> groups{queries.end(), 1};               ///< [1], full ones
  SumArray<double> key_moment{groups.end(), triangle};     ///< sum x x^T of keys, a packed triangle
  SumArray<double> key_sum{key_moment.end(), head_dim};    ///< [head_dim], of all keys
  SumArray<double> row_counts{key_sum.end(), rows};        ///< [rows], how many keys
  SumArray<double> key_range{row_counts.end(), head_dim};  ///< [head_dim], over full groups
  SumArray<float> query_moment{0, triangle};               ///< sum q q^T of queries, a packed triangle
  SumArray<float> row_sums{query_moment.end(), rows *head_dim};  ///< [rows, head_dim], of keys

  // Of queries that see packed tokens, see attention_weights.hpp: zero where nobody weighed them.
  SumArray<double> far_queries{key_range.end(), 1};           ///< [1], how many
  SumArray<double> key_weight{far_queries.end(), 1};          ///< [1], sum w of queries
  SumArray<double> value_weight{key_weight.end(), 1};         ///< [1], sum e of queries
  SumArray<double> output_square{value_weight.end(), 1};      ///< [1], sum |o|^2 of queries
  SumArray<float> weighted_moment{row_sums.end(), triangle};  ///< sum w q q^T, a packed triangle

  SumArray<double> values{output_square.end(), 1};     ///< [1], how many
  SumArray<double> value_sum{values.end(), head_dim};  ///< [head_dim], of all values

  Index doubles = value_sum.end();
  Index floats = weighted_moment.end();
};
static_assert(std::is_trivially_copyable_v<HeadSums>);

/// Additive moments of the queries (of every query head that shares the KV
/// head), keys and values of one KV head. Two of them merge into what one would hold
/// that had seen the tokens of both. moments.hpp adds tokens to them and says
/// what codings read from them.
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
      : layout_{head_dim, rows},
        group_(group),
        doubles_(static_cast<std::size_t>(layout_.doubles)),
        floats_(static_cast<std::size_t>(layout_.floats)),
        low_(static_cast<std::size_t>(head_dim)),
        high_(static_cast<std::size_t>(head_dim)) {}

  Index head_dim() const { return layout_.head_dim; }
  Index rows() const { return layout_.rows; }

  /// One array of sums, such as sums(&HeadSums::key_moment).
  template <class Real>
  std::span<Real> sums(SumArray<Real> HeadSums::*array) {
    return part(*this, layout_.*array);
  }
  template <class Real>
  std::span<const Real> sums(SumArray<Real> HeadSums::*array) const {
    return part(*this, layout_.*array);
  }

  /// How many queries were added.
  double queries() const { return sums(&HeadSums::queries)[0]; }

  /// How many keys were added.
  double keys() const {
    double count = 0;
    for (const double of_row : sums(&HeadSums::row_counts)) count += of_row;
    return count;
  }

  /// Takes in the next key [head_dim], for the ranges of channels.
  void add_range(const float *key) {
    for (std::size_t i = 0; i < low_.size(); ++i) {
      low_[i] = in_group_ == 0 ? key[i] : std::min(low_[i], key[i]);
      high_[i] = in_group_ == 0 ? key[i] : std::max(high_[i], key[i]);
    }
    if (++in_group_ < group_) return;
    const std::span<double> range = sums(&HeadSums::key_range);
    for (std::size_t i = 0; i < low_.size(); ++i) range[i] += static_cast<double>(high_[i] - low_[i]);
    sums(&HeadSums::groups)[0] += 1;
    in_group_ = 0;
  }

  /// The mean range (largest minus least) of each key channel over a group,
  /// [head_dim]; of what the first group has brought so far while none is full,
  /// ones before the first key.
  std::vector<double> mean_range() const {
    std::vector<double> range(low_.size(), 1.0);
    const double full = sums(&HeadSums::groups)[0];
    for (std::size_t i = 0; i < range.size(); ++i) {
      if (full > 0) {
        range[i] = sums(&HeadSums::key_range)[i] / full;
      } else if (in_group_ > 0) {
        range[i] = static_cast<double>(high_[i] - low_[i]);
      }
    }
    return range;
  }

  void merge(const QueryStatistics &other) {
    SQUAT_ASSERT(head_dim() == other.head_dim() && rows() == other.rows());
    add_sums(other.doubles_.data(), other.floats_.data());
  }

  /// Adds sums over other tokens, made elsewhere in the order of HeadSums.
  void add_sums(const double *doubles, const float *floats) {
    for (double &sum : doubles_) sum += *doubles++;
    for (float &sum : floats_) sum += *floats++;
  }

  /// Calls visit() with a span of all doubles and then with one of all floats.
  template <class Self, class Visit>
  static void visit_sums(Self &self, Visit &&visit) {
    visit(std::span(self.doubles_));
    visit(std::span(self.floats_));
  }

  /// All that is there, and back again; the record's sizes must be those of the same head_dim and rows.
  StatisticsRecord record() const { return {doubles_, floats_, in_group_, low_, high_}; }
  void adopt(const StatisticsRecord &record) {
    doubles_ = record.doubles;
    floats_ = record.floats;
    in_group_ = record.in_group;
    low_ = record.low;
    high_ = record.high;
  }

  std::size_t bytes() const {
    return sizeof *this + doubles_.size() * sizeof(double) +
           (floats_.size() + low_.size() + high_.size()) * sizeof(float);
  }

 private:
  template <class Self, class Real>
  static auto part(Self &self, const SumArray<Real> &array) {
    const auto first = static_cast<std::size_t>(array.first),
               size = static_cast<std::size_t>(array.size);
    if constexpr (std::is_same_v<Real, double>) {
      return std::span(self.doubles_).subspan(first, size);
    } else {
      return std::span(self.floats_).subspan(first, size);
    }
  }

  HeadSums layout_;
  Index group_;
  std::vector<double> doubles_;
  std::vector<float> floats_;
  std::vector<float> low_, high_;  // of the group that is filling, [head_dim]
  Index in_group_ = 0;             // its tokens so far
};

/// Whether attention was weighed, and found far keys and values to matter.
inline bool has_attention_weights(const QueryStatistics &statistics) {
  return statistics.sums(&HeadSums::key_weight)[0] > 0 &&
         statistics.sums(&HeadSums::value_weight)[0] > 0;
}

}  // namespace squat::inline SQUAT_API_NAMESPACE
