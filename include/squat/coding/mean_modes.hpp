#pragma once

// The scores of a turned mean key, as a product of small rank.
//
// What a query q of a tile's frame scores with the mean key m in row j of the
// tile is, over the channels a, b of pair i (see TileFrame),
//
//   q . R(j) m = sum_i cos(j w_i) u_i + sin(j w_i) v_i + what does not turn,
//   u_i = q_a m_a + q_b m_b,  v_i = q_b m_a - q_a m_b.
//
// Most frequencies w are so small that their cosines and sines hardly bend
// within a tile: the table of all of them has a rank of 35 to 50 to five digits,
// not head_dim. With P its leading left singular vectors,
//
//   q . R(j) m = sum_k (projection q)_k mode_k(j),  mode = P^T table,
//
// where the projection holds P and the mean of a head, and the modes are common
// to all heads. Where u and v are worked out, P is as well, and a head has no more
// than its mean.

#include <Eigen/Core>
#include <algorithm>
#include <cstddef>
#include <span>

#include "squat/coding/matrix_product.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/coding/symmetric_eigen.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

class MeanModes {
 public:
  /// The modes of a frame, to a tolerance of 1e-5 of the largest.
  template <class Real = double>
  explicit MeanModes(const TileFrame &frame) : table_(frame.table()) {
    const Index turning = frame.angle_count();
    const Matrix<Real> table = table_of<Real>(frame);
    const auto eigen = symmetric_eigen<Real>(matrix_product<Real>(table, transposed<Real>(table)));
    SQUAT_ASSERT(eigen);  // cosines and sines are finite
    const Real *values = eigen->values.data(), *end = values + turning + 1;  // rising
    const Real least = end[-1] * static_cast<Real>(tolerance * tolerance);
    const Index count = end - std::upper_bound(values, end, least);
    angles_.resize(turning + 1, count);
    std::copy_n(eigen->vectors.data() + (turning + 1 - count) * (turning + 1), angles_.size(),
                angles_.data());
  }

  Index count() const { return angles_.cols(); }
  std::size_t bytes() const { return static_cast<std::size_t>(angles_.size()) * sizeof(double); }

  /// mode_k(j), [count, rows of a tile], of that frame.
  template <class Real = double>
  Eigen::MatrixXd rows(const TileFrame &frame) const {
    const Matrix<Real> angles = angles_.template cast<Real>();
    return matrix_product<Real>(transposed<Real>(angles), table_of<Real>(frame)).template cast<double>();
  }

  /// P^T, what the products of queries with a mean (multiply_by_mean) are multiplied by, [count,
  /// head_dim].
  Eigen::MatrixXd of_products(Index head_dim) const {
    const Index pairs = table_.pair_count();
    Eigen::MatrixXd matrix = Eigen::MatrixXd::Zero(count(), head_dim);
    for (Index mode = 0; mode < count(); ++mode) {
      for (Index pair = 0; pair < pairs; ++pair) {
        matrix(mode, pair) = angles_(2 * pair, mode);
        matrix(mode, pairs + pair) = angles_(2 * pair + 1, mode);
      }
      if (2 * pairs < head_dim) matrix(mode, 2 * pairs) = angles_(2 * pairs, mode);
    }
    return matrix;
  }

  /// What a head's queries are multiplied by, [count, head_dim]. mean: of the
  /// keys before their rotary embedding, [head_dim].
  Eigen::MatrixXd projection(std::span<const float> mean) const {
    const auto m = [&](Index channel) {
      return static_cast<double>(mean[static_cast<std::size_t>(channel)]);
    };
    const auto size = static_cast<Index>(mean.size());
    Eigen::MatrixXd projection(count(), size);
    for (Index pair = 0; pair < table_.pair_count(); ++pair) {
      const auto [a, b] = table_.channels(pair);
      for (Index mode = 0; mode < count(); ++mode) {
        const double cosine = angles_(2 * pair, mode), sine = angles_(2 * pair + 1, mode);
        projection(mode, a) = cosine * m(a) - sine * m(b);
        projection(mode, b) = cosine * m(b) + sine * m(a);
      }
    }
    for (Index i = 2 * table_.pair_count(); i < size; ++i) {
      for (Index mode = 0; mode < count(); ++mode)
        projection(mode, i) = angles_(angles_.rows() - 1, mode) * m(i);
    }
    return projection;
  }

 private:
  static constexpr double tolerance = 1e-5;  // of the largest singular value

  /// Cosines and sines of all rows, and ones of channels that do not turn, [2 * pairs + 1, rows].
  template <class Real>
  static Matrix<Real> table_of(const TileFrame &frame) {
    const Index turning = frame.angle_count();
    Matrix<Real> table(turning + 1, frame.rows());
    for (Index row = 0; row < frame.rows(); ++row) {
      for (Index angle = 0; angle < turning; ++angle) {
        table(angle, row) = static_cast<Real>(frame.angles(row)[angle * frame.rows()]);
      }
      table(turning, row) = 1;
    }
    return table;
  }

  RotaryTable table_;
  Eigen::MatrixXd angles_;  // P, [2 * pairs + 1, count]
};

/// The products u of all pairs, v of all pairs and the sum over what does not turn, of a query and a
/// mean [head_dim] of that table; the rest of products [head_dim] is 0.
inline void multiply_by_mean(const RotaryTable &table, const float *query, const float *mean,
                             Index head_dim, float *products) {
  const Index pairs = table.pair_count();
  float *u = products, *v = products + pairs;
  const auto multiply = [&](Index pair, Index a, Index b) {
    u[pair] = query[a] * mean[a] + query[b] * mean[b];
    v[pair] = query[b] * mean[a] - query[a] * mean[b];
  };
  if (table.pairs == RotaryPairs::interleaved) {
    for (Index pair = 0; pair < pairs; ++pair) multiply(pair, 2 * pair, 2 * pair + 1);
  } else {
    for (Index pair = 0; pair < pairs; ++pair) multiply(pair, pair, pair + pairs);
  }
  if (2 * pairs == head_dim) return;
  std::fill(products + 2 * pairs, products + head_dim, 0.0f);
  for (Index i = 2 * pairs; i < head_dim; ++i) products[2 * pairs] += query[i] * mean[i];
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
