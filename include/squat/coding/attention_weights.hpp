#pragma once

// What errors in packed keys and values do to attention outputs.
//
// Query t of a head attends with weights a_s = softmax_s(q . k_s scale) over all tokens s <= t to o =
// sum_s a_s v_s. Far tokens are those that will be packed where it stands: behind the sinks, and
// `residual` or more before t. Independent errors e_s of far keys and values add to |o|^2, to first
// order and on average,
//
// - keys: sum_s a_s^2 |v_s - o|^2 scale^2 (q . e_s)^2 = w_t (q . e)^2, where
// w_t = scale^2 sum_s a_s^2 |v_s - o|^2;
// - values: sum_s a_s^2 |e_s|^2 = D e_t for |e_s|^2 = D |v_s|^2, where e_t = sum_s a_s^2 |v_s|^2;
//
// with sums over far s. So C = sum_t w_t q q^T is the metric of keys in which errors of different heads
// can be added, to each other and to what sum_t e_t makes of the values' errors.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>

#include "squat/coding/matrix_product.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Which tokens are far from a query.
struct FarTokens {
  Index sinks = 0;     ///< first tokens of a sequence, never far
  Index residual = 0;  ///< tokens from a query back to the nearest far one

  /// The end of those, of a query with `index` tokens before it. They begin at `sinks`.
  Index end(Index index) const { return index - residual + 1; }
};

/// The sums above for some queries of one KV head, in one pass over its keys and values in any blocks.
/// With p_s = exp(score_s - the largest so far), sums over p and p^2 are rescaled when the largest
/// changes.
class AttentionWeights {
 public:
  /// Keys of a block at most.
  static constexpr Index block_tokens = 64;

  /// Floats of the memory that `rows` queries take.
  static Index elements(Index rows, Index head_dim) {
    return rows * (2 * head_dim + 2 * block_tokens + 4) + block_tokens;
  }

  /// queries: [rows, head_dim], multiplied by the attention scale; indices: tokens before each. memory:
  /// elements() floats.
  AttentionWeights(const float *queries, const Index *indices, Index rows, Index head_dim,
                   FarTokens far_tokens, float *memory)
      : queries_(queries), indices_(indices), rows_(rows), head_dim_(head_dim), far_(far_tokens) {
    const auto take = [&memory](Index count) {
      std::fill_n(memory, count, 0.0f);
      memory += count;
      return memory - count;
    };
    output_ = take(rows * head_dim);
    far_output_ = take(rows * head_dim);
    probabilities_ = take(rows * block_tokens);
    squares_ = take(rows * block_tokens);
    norms_ = take(block_tokens);
    largest_ = take(rows);
    sums_ = take(rows);
    far_squares_ = take(rows);
    far_norms_ = take(rows);
    std::fill_n(largest_, rows, -std::numeric_limits<float>::infinity());
  }

  /// Takes in `count` keys and values, [count, head_dim], the first of which has `index` tokens before
  /// it.
  void add(const float *keys, const float *values, Index index, Index count) {
    const auto keys_of = strided_rows(keys, count, head_dim_),
               values_of = strided_rows(values, count, head_dim_);
    Eigen::Map<Eigen::ArrayXf>(norms_, count) = values_of.rowwise().squaredNorm();
    std::fill_n(probabilities_, rows_ * count, 0.0f);
    add_product_transposed<float>(strided_rows(queries_, rows_, head_dim_), keys_of,
                                  strided_rows(probabilities_, rows_, count));
    for (Index row = 0; row < rows_; ++row) add_row(row, index, count);
    add_product<float>(strided_rows<const float>(probabilities_, rows_, count), values_of,
                       strided_rows(output_, rows_, head_dim_));
    add_product<float>(strided_rows<const float>(squares_, rows_, count), values_of,
                       strided_rows(far_output_, rows_, head_dim_));
  }

  struct Weights {
    double key;            ///< w / scale^2
    double value;          ///< e
    double output_square;  ///< |o|^2
    bool far;              ///< there are far tokens
  };

  /// Of a query that has seen all of its tokens.
  Weights weights(Index row) const {
    const double inverse = 1 / static_cast<double>(sums_[row]);
    const float *output = output_ + row * head_dim_, *far_output = far_output_ + row * head_dim_;
    double square = 0, product = 0;
    for (Index i = 0; i < head_dim_; ++i) {
      const double o = static_cast<double>(output[i]) * inverse;
      square += o * o;
      product += o * static_cast<double>(far_output[i]);
    }
    const double far_norm = static_cast<double>(far_norms_[row]) * inverse * inverse;
    const double far_square = static_cast<double>(far_squares_[row]) * inverse * inverse;
    const double key = far_norm - 2 * product * inverse * inverse + far_square * square;
    return {std::max(key, 0.0), far_norm, square, far_.end(indices_[row]) > far_.sinks};
  }

 private:
  /// Scores of a row become exp(score - largest) and what of its square is far; 0 where it does not see.
  void add_row(Index row, Index index, Index count) {
    using Row = Eigen::Map<Eigen::ArrayXf>;
    const Index seen = std::clamp<Index>(indices_[row] + 1 - index, 0, count);
    const Index far_end = std::clamp<Index>(far_.end(indices_[row]) - index, 0, count);
    const Index far_begin = std::clamp<Index>(far_.sinks - index, 0, far_end);
    Row probabilities(probabilities_ + row * count, count), squares(squares_ + row * count, count);
    squares.setZero();
    probabilities.tail(count - seen).setZero();
    if (seen == 0) return;
    const float largest = std::max(largest_[row], probabilities.head(seen).maxCoeff());
    const float factor = std::exp(largest_[row] - largest);
    largest_[row] = largest;
    Row(output_ + row * head_dim_, head_dim_) *= factor;
    Row(far_output_ + row * head_dim_, head_dim_) *= factor * factor;
    probabilities.head(seen) = (probabilities.head(seen) - largest).exp();
    const Index far = far_end - far_begin;
    squares.segment(far_begin, far) = probabilities.segment(far_begin, far).square();
    const auto add_to = [](float &sum, float by, float more) { sum = sum * by + more; };
    add_to(sums_[row], factor, probabilities.head(seen).sum());
    add_to(far_squares_[row], factor * factor, squares.sum());
    add_to(far_norms_[row], factor * factor,
           (squares * Eigen::Map<const Eigen::ArrayXf>(norms_, count)).sum());
  }

  const float *queries_;  // [rows, head_dim], scaled
  const Index *indices_;  // [rows]
  Index rows_, head_dim_;
  FarTokens far_;
  float *output_;         // [rows, head_dim], sum p v
  float *far_output_;     // [rows, head_dim], sum p^2 v of far tokens
  float *probabilities_;  // [rows, tokens of a block]
  float *squares_;        // [rows, tokens of a block]
  float *norms_;          // [tokens of a block], |v|^2
  float *largest_;        // [rows], score
  float *sums_;           // [rows], sum p
  float *far_squares_;    // [rows], sum p^2 of far tokens
  float *far_norms_;      // [rows], sum p^2 |v|^2 of far tokens
};

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
