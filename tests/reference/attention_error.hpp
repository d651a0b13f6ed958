#pragma once

// How far attention over coded keys and values is from attention over the exact ones, in double
// precision. The same measure as tests/reference/coding.py.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <vector>

namespace squat::test {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

struct AttentionError {
  double kl = 0;      // mean KL(exact || coded) of the attention probabilities, nats
  double output = 0;  // relative error of the attention output
};

/// Which tokens a query sees packed: behind `sinks` exact ones, groups of `group` that left `window`.
struct PackedRange {
  Eigen::Index prompt;
  Eigen::Index sinks;
  Eigen::Index window;
  Eigen::Index group;
};

inline Eigen::ArrayXd softmax(const Eigen::ArrayXd &scores) {
  const Eigen::ArrayXd powers = (scores - scores.maxCoeff()).exp();
  return powers / powers.sum();
}

/// Over all query heads (each [tokens, head_dim]) and the queries from `prompt` on.
inline AttentionError attention_error(const std::vector<Matrix> &query_heads, const Matrix &k,
                                      const Matrix &k_coded, const Matrix &v, const Matrix &v_coded,
                                      PackedRange range) {
  const double scale = 1 / std::sqrt(static_cast<double>(k.cols()));
  double kl = 0, difference = 0, norm = 0;
  Eigen::Index queries = 0;
  for (const Matrix &q : query_heads) {
    for (Eigen::Index t = range.prompt; t < k.rows(); ++t, ++queries) {
      const Eigen::Index behind = std::max<Eigen::Index>(t + 1 - range.sinks - range.window, 0);
      const Eigen::Index packed = behind / range.group * range.group;
      Eigen::ArrayXd exact = (k.topRows(t + 1) * q.row(t).transpose()).array() * scale;
      Eigen::ArrayXd coded = exact;
      coded.segment(range.sinks, packed) =
          (k_coded.middleRows(range.sinks, packed) * q.row(t).transpose()).array() * scale;
      exact = softmax(exact);
      coded = softmax(coded);
      kl += (exact * (exact.max(1e-300).log() - coded.max(1e-300).log())).sum();
      Matrix values = v.topRows(t + 1);
      values.middleRows(range.sinks, packed) = v_coded.middleRows(range.sinks, packed);
      const Eigen::RowVectorXd output = exact.matrix().transpose() * v.topRows(t + 1);
      difference += (coded.matrix().transpose() * values - output).squaredNorm();
      norm += output.squaredNorm();
    }
  }
  return {kl / static_cast<double>(queries), std::sqrt(difference / norm)};
}

}  // namespace squat::test
