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
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <vector>

#include "squat/coding/chunks.hpp"
#include "squat/coding/coding.hpp"
#include "squat/coding/matrix_product.hpp"
#include "squat/coding/symmetric_eigen.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// The metric P of key errors, [head_dim, head_dim], symmetric positive
/// definite. C: sum of q q^T over the prompt's queries. rank 0: C / mean(diag
/// C) + I. Otherwise I + lambda Q^T Q, Q of that rank (paper, eq. 5). Without
/// queries it is the identity, and rounding to nearest comes out.
template <class Real = double>
Matrix<Real> query_metric(const Matrix<Real> &C, const OrthogonalOptions &options) {
  const Index d = C.rows();
  Matrix<Real> P(d, d);
  P.setZero();
  Real mean = 0;
  for (Index i = 0; i < d; ++i) {
    P(i, i) = 1;
    mean += C(i, i) / static_cast<Real>(d);
  }
  if (!(mean > 0)) return P;
  if (options.rank == 0) {
    for (Index i = 0; i < P.size(); ++i) P.data()[i] += C.data()[i] / mean;
    return P;
  }
  const auto eigen = symmetric_eigen<Real>(C);
  if (!eigen) return P;
  Matrix<Real> leading(d, options.rank), weighted(d, options.rank);
  for (Index j = 0; j < options.rank; ++j) {
    const Index from = d - options.rank + j;  // values rise
    const Real square = std::max(eigen->values(from), Real{0});
    for (Index i = 0; i < d; ++i) {
      leading(i, j) = eigen->vectors(i, from);
      weighted(i, j) = static_cast<Real>(options.lambda) * square * leading(i, j);
    }
  }
  const Matrix<Real> products = matrix_product<Real>(weighted, transposed<Real>(leading));
  for (Index i = 0; i < P.size(); ++i) P.data()[i] += products.data()[i];
  return P;
}

/// The feedback matrix F of rounding channels 0, 1, ... in blocks of `block`,
/// [d, d], zero on and above the diagonal blocks.
template <class Real = double>
Matrix<Real> feedback_matrix(const Matrix<Real> &P, Index block) {
  const Index d = P.rows();
  SQUAT_ASSERT(d % block == 0);
  // Channels reversed, Cholesky's lower factor is the transpose of L reversed
  // in both directions.
  Matrix<Real> reversed(d, d), L(d, d), F(d, d);
  for (Index i = 0; i < d * d; ++i) reversed.data()[i] = P.data()[d * d - 1 - i];
  const Eigen::LLT<Matrix<Real>> cholesky(reversed);
  for (Index j = 0; j < d; ++j) {
    for (Index i = 0; i < d; ++i) L(i, j) = i < j ? Real{0} : cholesky.matrixLLT()(d - 1 - j, d - 1 - i);
  }
  // F_b = L_bb^-1 L_b,<b, a row of a block after the other.
  F.setZero();
  for (Index first = block; first < d; first += block) {
    for (Index i = first; i < first + block; ++i) {
      for (Index j = 0; j < first; ++j) {
        Real entry = L(i, j);
        for (Index inner = first; inner < i; ++inner) entry -= L(i, inner) * F(inner, j);
        F(i, j) = entry / L(i, i);
      }
    }
  }
  return F;
}

/// What orthogonal rounding needs to know of one KV head.
struct OrthogonalRounding {
  std::vector<int> order;  ///< channels in the order they are rounded
  RowMatrix feedback;      ///< F, in that order
  Index block = 1;

  /// Moments that no queries have (a file may hold them) give factors that are larger, or no numbers.
  static constexpr float largest_factor = 1e6f;
  static bool is_factor(float x) { return std::abs(x) <= largest_factor; }

  std::size_t bytes() const {
    return order.size() * sizeof(int) + static_cast<std::size_t>(feedback.size()) * sizeof(float);
  }
};

/// Learns the rounding of a head from its queries' moments and its keys'
/// ranges. Channels whose error would weigh most, range * sqrt(P_cc), are
/// rounded first, while all the others can still make up for them.
template <class Real = double>
OrthogonalRounding learn_orthogonal_rounding(const Matrix<Real> &query_moment,
                                             const std::vector<double> &key_range,
                                             const OrthogonalOptions &options) {
  const Matrix<Real> P = query_metric<Real>(query_moment, options);
  const Index d = P.rows();
  OrthogonalRounding rounding;
  rounding.block = options.block;
  rounding.order.resize(static_cast<std::size_t>(d));
  std::iota(rounding.order.begin(), rounding.order.end(), 0);
  const auto weight = [&](int channel) {
    return key_range[static_cast<std::size_t>(channel)] * std::sqrt(P(channel, channel));
  };
  if (options.order) {
    std::sort(rounding.order.begin(), rounding.order.end(),
              [&](int a, int b) { return weight(a) > weight(b) || (weight(a) == weight(b) && a < b); });
  }
  const auto channel = [&](Index i) { return rounding.order[static_cast<std::size_t>(i)]; };
  Matrix<Real> permuted(d, d);
  for (Index j = 0; j < d; ++j) {
    for (Index i = 0; i < d; ++i) permuted(i, j) = P(channel(i), channel(j));
  }
  rounding.feedback = feedback_matrix<Real>(permuted, rounding.block).template cast<float>();
  return rounding;
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE

namespace squat::detail::inline SQUAT_CPU_NAMESPACE {

/// target -= sum_j factors[j] rows[j], over `Chunks` chunks of tokens, whose sums stay in registers.
template <int Chunks, class Scalar>
void subtract_rows(const Scalar *factors, const Scalar *rows, Index count, Index stride,
                   Scalar *target) {
  std::array<Chunk, Chunks> sums;
  for (Chunk &sum : sums) sum.setZero();
  for (Index j = 0; j < count; ++j, rows += stride) {
    for (Index i = 0; i < Chunks; ++i)
      sums[static_cast<std::size_t>(i)] += factors[j] * load_chunk(rows + i * chunk_size);
  }
  for (Index i = 0; i < Chunks; ++i)
    Eigen::Map<Chunk>(target + i * chunk_size) -= sums[static_cast<std::size_t>(i)];
}

}  // namespace squat::detail::inline SQUAT_CPU_NAMESPACE

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Rounds a group of keys with feedback. keys: channel-major [head_dim,
/// tokens]; errors: scratch of the same shape, which on return holds e in the
/// order of rounding. `round(channel, row)` codes one channel's targets, row
/// [tokens], and writes what the codes stand for over them.
template <class Scalar, class Round>
void round_orthogonal(const OrthogonalRounding &rounding, const Scalar *keys, Index tokens,
                      Scalar *errors, Round &&round) {
  const auto d = static_cast<Index>(rounding.order.size());
  for (Index first = 0; first < d; first += rounding.block) {
    for (Index i = first; i < first + rounding.block; ++i) {
      Scalar *target = errors + i * tokens;
      std::copy_n(keys + rounding.order[static_cast<std::size_t>(i)] * tokens, tokens, target);
      const Scalar *factors = rounding.feedback.data() + i * d;
      Index token = 0;
      for (; token + 4 * chunk_size <= tokens; token += 4 * chunk_size)
        detail::subtract_rows<4>(factors, errors + token, first, tokens, target + token);
      for (; token < tokens; token += chunk_size)
        detail::subtract_rows<1>(factors, errors + token, first, tokens, target + token);
    }
    for (Index i = first; i < first + rounding.block; ++i) {
      const Index channel = rounding.order[static_cast<std::size_t>(i)];
      Scalar *row = errors + i * tokens;
      round(channel, row);
      for (Index token = 0; token < tokens; ++token) row[token] -= keys[channel * tokens + token];
    }
  }
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
