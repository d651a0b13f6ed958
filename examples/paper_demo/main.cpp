// The demonstration of the SQuat paper (arXiv 2503.24358) on its own tensors: 32 queries and keys of one
// head, 2 bits, one group of 32 tokens. Prints the sum of |difference| between the exact attention
// probabilities and those over rounded keys. As in the paper's code, zeros and scales stay in full
// precision here.

#include <Eigen/Core>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <string>

#include "squat/coding/orthogonal_rounding.hpp"

namespace {

constexpr int tokens = 32, head_dim = 128;
using Rows = Eigen::Matrix<float, tokens, head_dim, Eigen::RowMajor>;

bool read(const std::string &name, Rows &rows) {
  std::ifstream in(PAPER_DEMO_DATA "/" + name, std::ios::binary);
  return static_cast<bool>(
      in.read(reinterpret_cast<char *>(rows.data()), static_cast<std::streamsize>(sizeof rows)));
}

/// causal softmax(q k^T / sqrt(head_dim))
Eigen::MatrixXd attention(const Rows &q, const Rows &k) {
  Eigen::MatrixXd p = q.cast<double>() * k.cast<double>().transpose() / std::sqrt(double{head_dim});
  p.triangularView<Eigen::StrictlyUpper>().setConstant(-std::numeric_limits<double>::infinity());
  p = (p.colwise() - p.rowwise().maxCoeff()).array().exp().matrix().eval();
  return p.array().colwise() / p.rowwise().sum().array();
}

/// Rounds a channel's group of tokens to 2 bits between its extremes.
void round_minmax(squat::Index, float *row) {
  Eigen::Map<Eigen::ArrayXf> x(row, tokens);
  const float low = x.minCoeff(), scale = (x.maxCoeff() - low) / 3;
  x = ((x - low) / scale).round() * scale + low;
}

double difference(const Rows &q, const Rows &k, const squat::OrthogonalOptions &options) {
  const Eigen::MatrixXd moment = q.cast<double>().transpose() * q.cast<double>();
  const auto rounding =
      squat::learn_orthogonal_rounding(moment, std::vector<double>(head_dim, 1.0), options);
  squat::RowMatrix channels = k.transpose(), errors(head_dim, tokens);
  squat::round_orthogonal(rounding, channels.data(), tokens, errors.data(), round_minmax);
  const Rows coded = (channels + errors).transpose();
  return (attention(q, k) - attention(q, coded)).cwiseAbs().sum();
}

}  // namespace

int main() {
  Rows q, k;
  if (!read("q_32x128_f32.bin", q) || !read("k_32x128_f32.bin", k)) {
    std::fprintf(stderr, "paper_demo: cannot read the tensors in " PAPER_DEMO_DATA "\n");
    return 1;
  }
  std::printf("sum of |attention difference|, 2 bits, 32 tokens\n");
  std::printf("  plain                                    %.7f\n",
              difference(q, k, {.rank = 1, .lambda = 0, .block = head_dim, .order = false}));
  std::printf("  orthogonal, rank 30, block 2, lambda 0.1 %.7f\n",
              difference(q, k, {.rank = 30, .lambda = .1f, .block = 2, .order = false}));
}
