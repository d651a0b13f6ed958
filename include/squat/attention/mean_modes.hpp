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
// to all heads.

#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <cstddef>

#include "squat/attention/rotary.hpp"
#include "squat/config.hpp"
#include "squat/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

class MeanModes {
 public:
  explicit MeanModes(const TileFrame &frame) : table_(frame.table()) {
    const Index turning = frame.angle_count();
    Eigen::MatrixXd table(turning + 1, frame.rows());
    for (Index angle = 0; angle < turning; ++angle) {
      for (Index row = 0; row < frame.rows(); ++row) {
        table(angle, row) = static_cast<double>(frame.angles(row)[angle * frame.rows()]);
      }
    }
    table.row(turning).setOnes();  // of channels that do not turn
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(table * table.transpose());
    const double least = eigen.eigenvalues().maxCoeff() * tolerance * tolerance;
    const Index count = (eigen.eigenvalues().array() > least).count();
    angles_ = eigen.eigenvectors().rightCols(count);
    rows_ = angles_.transpose() * table;
  }

  Index count() const { return angles_.cols(); }
  std::size_t bytes() const {
    return static_cast<std::size_t>(angles_.size() + rows_.size()) * sizeof(double);
  }

  /// mode_k(j), [count, rows of a tile].
  const Eigen::MatrixXd &rows() const { return rows_; }

  /// What a head's queries are multiplied by, [count, head_dim]. mean: of the
  /// keys before their rotary embedding, [head_dim].
  Eigen::MatrixXd projection(Eigen::Map<const Eigen::VectorXf> mean) const {
    const Eigen::VectorXd m = mean.cast<double>();
    Eigen::MatrixXd projection(count(), m.size());
    for (Index pair = 0; pair < table_.pair_count(); ++pair) {
      const auto [a, b] = table_.channels(pair);
      const auto cosine = angles_.row(2 * pair).transpose(),
                 sine = angles_.row(2 * pair + 1).transpose();
      projection.col(a) = cosine * m[a] - sine * m[b];
      projection.col(b) = cosine * m[b] + sine * m[a];
    }
    for (Index i = 2 * table_.pair_count(); i < m.size(); ++i) {
      projection.col(i) = angles_.row(angles_.rows() - 1).transpose() * m[i];
    }
    return projection;
  }

 private:
  static constexpr double tolerance = 1e-5;  // of the largest singular value

  RotaryTable table_;
  Eigen::MatrixXd angles_;  // P, [2 * pairs + 1, count]
  Eigen::MatrixXd rows_;
};

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
