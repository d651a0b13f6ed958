#pragma once

// Rounding whose error is orthogonal to the query subspace (SQuat, Wang, Han,
// Xu, Srivastava, COLM 2025, arXiv 2503.24358).
//
// A query sees the error e of a key as q . e, so errors are measured in a
// metric P made of the queries' moments. With P = L^T L, L lower triangular,
//
//   e^T P e = sum_i (L_ii e_i + sum_{j<i} L_ij e_j)^2,
//
// and once channels 0 .. i-1 are rounded the best real value for channel i is
//
//   target_i = k_i - sum_{j<i} F_ij e_j,   F = diag(L)^-1 strictly_lower(L).
//
// Rounding blocks of channels together replaces diag(L) by the blocks on L's
// diagonal. The errors e are always those against the original key. This equals
// the paper's recursion over P^-1 (its section 4.2) and costs one triangular
// matrix a head.

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "squat/config.hpp"
#include "squat/instruction_set.hpp"
#include "squat/quantize/coding.hpp"
#include "squat/quantize/query_statistics.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// The metric P of key errors, [head_dim, head_dim], symmetric positive
/// definite. C: sum of q q^T over the prompt's queries. rank 0: C / mean(diag
/// C) + I. Otherwise I + lambda Q^T Q, Q of that rank (paper, eq. 5). Without
/// queries it is the identity, and rounding to nearest comes out.
inline Eigen::MatrixXd query_metric(const Eigen::MatrixXd &C, const OrthogonalOptions &options) {
  const Index d = C.rows();
  Eigen::MatrixXd P = Eigen::MatrixXd::Identity(d, d);
  const double mean = C.trace() / static_cast<double>(d);
  if (!(mean > 0)) return P;
  if (options.rank == 0) return P + C / mean;
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(C);
  const auto leading = eigen.eigenvectors().rightCols(options.rank);
  const auto squares = eigen.eigenvalues().tail(options.rank).cwiseMax(0.0);
  P.noalias() +=
      static_cast<double>(options.lambda) * leading * squares.asDiagonal() * leading.transpose();
  return P;
}

/// The feedback matrix F of rounding channels 0, 1, ... in blocks of `block`,
/// [d, d], zero on and above the diagonal blocks.
inline Eigen::MatrixXd feedback_matrix(const Eigen::MatrixXd &P, Index block) {
  const Index d = P.rows();
  SQUAT_ASSERT(d % block == 0);
  // Channels reversed, Cholesky's lower factor is the transpose of L reversed
  // in both directions.
  const Eigen::MatrixXd reversed = P.reverse();
  const Eigen::MatrixXd U = reversed.llt().matrixL();
  const Eigen::MatrixXd L = U.reverse().transpose();
  Eigen::MatrixXd F = Eigen::MatrixXd::Zero(d, d);
  for (Index b = block; b < d; b += block) {
    F.block(b, 0, block, b) =
        L.block(b, b, block, block).triangularView<Eigen::Lower>().solve(L.block(b, 0, block, b));
  }
  return F;
}

/// What orthogonal rounding needs to know of one KV head.
struct OrthogonalRounding {
  std::vector<int> order;  ///< channels in the order they are rounded
  RowMatrix feedback;      ///< F, in that order
  Index block = 1;

  std::size_t bytes() const {
    return order.size() * sizeof(int) + static_cast<std::size_t>(feedback.size()) * sizeof(float);
  }
};

/// Learns the rounding of a head from its queries' moments and its keys'
/// ranges. Channels whose error would weigh most, range * sqrt(P_cc), are
/// rounded first, while all the others can still make up for them.
inline OrthogonalRounding learn_orthogonal_rounding(const Eigen::MatrixXd &query_moment,
                                                    const Eigen::ArrayXd &key_range,
                                                    const OrthogonalOptions &options) {
  const Eigen::MatrixXd P = query_metric(query_moment, options);
  OrthogonalRounding rounding;
  rounding.block = options.block;
  rounding.order.resize(static_cast<std::size_t>(P.rows()));
  std::iota(rounding.order.begin(), rounding.order.end(), 0);
  if (options.order) {
    const Eigen::ArrayXd weight = key_range * P.diagonal().array().sqrt();
    std::stable_sort(rounding.order.begin(), rounding.order.end(),
                     [&](int a, int b) { return weight[a] > weight[b]; });
  }
  const Eigen::MatrixXd permuted = P(rounding.order, rounding.order);
  rounding.feedback = feedback_matrix(permuted, rounding.block).cast<float>();
  return rounding;
}

/// Rounds a group of keys with feedback. keys: channel-major [head_dim,
/// tokens]; errors: scratch of the same shape, which on return holds e in the
/// order of rounding. `round(channel, target, rounded)` codes one channel's
/// targets [tokens] and writes what the codes stand for into `rounded`; the two
/// may be one array.
template <class Round>
void round_orthogonal(const OrthogonalRounding &rounding, Eigen::Map<const RowMatrix> keys,
                      Eigen::Map<RowMatrix> errors, Round &&round) {
  const Index d = keys.rows(), tokens = keys.cols();
  for (Index first = 0; first < d; first += rounding.block) {
    for (Index i = first; i < first + rounding.block; ++i) {
      const Index channel = rounding.order[static_cast<std::size_t>(i)];
      Eigen::Map<Eigen::RowVectorXf> target(errors.row(i).data(), tokens);
      target = keys.row(channel);
      if (first > 0) {
        target.noalias() -= rounding.feedback.row(i).head(first) * errors.topRows(first);
      }
    }
    for (Index i = first; i < first + rounding.block; ++i) {
      const Index channel = rounding.order[static_cast<std::size_t>(i)];
      float *row = errors.row(i).data();
      round(channel, Eigen::Map<const Eigen::ArrayXf>(row, tokens),
            Eigen::Map<Eigen::ArrayXf>(row, tokens));
      errors.row(i) -= keys.row(channel);
    }
  }
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
