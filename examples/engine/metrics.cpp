#include "metrics.hpp"

#include <algorithm>
#include <cmath>

namespace engine {
namespace {

double log_sum_exp(LogitRow logits) {
  const float most = logits.maxCoeff();
  return static_cast<double>(most) + std::log(static_cast<double>((logits.array() - most).exp().sum()));
}

}  // namespace

Prediction compare(LogitRow exact, LogitRow coded, int next_token) {
  const double exact_sum = log_sum_exp(exact), coded_sum = log_sum_exp(coded);
  // sum p (log p - log q), log p - log q taken before it is weighed, so that small divergences keep
  // their digits
  const auto shift = static_cast<float>(coded_sum - exact_sum);
  const auto p = (exact.array() - static_cast<float>(exact_sum)).exp();
  Prediction prediction;
  prediction.kl =
      std::max(0.0, static_cast<double>((p * (exact.array() - coded.array() + shift)).sum()));
  prediction.negative_log_likelihood = coded_sum - static_cast<double>(coded[next_token]);
  Eigen::Index exact_top = 0, coded_top = 0;
  exact.maxCoeff(&exact_top);
  coded.maxCoeff(&coded_top);
  prediction.top1 = exact_top == coded_top;
  return prediction;
}

Summary summarize(const std::vector<Prediction> &predictions) {
  Summary summary;
  if (predictions.empty()) return summary;
  std::vector<double> kl;
  double likelihood = 0;
  for (const Prediction &prediction : predictions) {
    kl.push_back(prediction.kl);
    likelihood += prediction.negative_log_likelihood;
    summary.kl_mean += prediction.kl;
    summary.top1 += prediction.top1;
  }
  const auto count = static_cast<double>(predictions.size());
  summary.perplexity = std::exp(likelihood / count);
  summary.kl_mean /= count;
  summary.top1 /= count;
  const auto p99 = static_cast<std::size_t>(.99 * (count - 1));
  std::nth_element(kl.begin(), kl.begin() + static_cast<std::ptrdiff_t>(p99), kl.end());
  summary.kl_p99 = kl[p99];
  return summary;
}

}  // namespace engine
