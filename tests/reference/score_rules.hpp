#pragma once

// Attention in double precision with all that may become of scores before and in their softmax.

#include <cmath>
#include <cstddef>
#include <vector>

#include "reference_attention.hpp"

namespace squat::test {

/// The output of one query row, and the logarithm of its softmax's denominator.
struct RowAttention {
  std::vector<double> output;
  double lse;
};

/// options: attention_window, soft_cap, alibi_slopes, sink_logits; of layer 0. seen: tokens up to the
/// query's own, of which the window leaves the last.
inline RowAttention attend_row(const Options &options, const float *query, Index head,
                               TensorView<const float> k, TensorView<const float> v, Index seen) {
  const Index d = k.head_dim, of = head * options.kv_heads / options.query_heads;
  const double scale = 1 / std::sqrt(static_cast<double>(d));
  const auto at = static_cast<std::size_t>(head);
  const Index first =
      options.attention_window > 0 ? std::max<Index>(seen - options.attention_window, 0) : 0;
  std::vector<double> scores;
  for (Index token = first; token < seen; ++token) {
    const float *key = k.row(token, of);
    double score = 0;
    for (Index i = 0; i < d; ++i) score += static_cast<double>(query[i]) * static_cast<double>(key[i]);
    score *= scale;
    const auto cap = static_cast<double>(options.soft_cap);
    if (cap > 0) score = cap * std::tanh(score / cap);
    if (!options.alibi_slopes.empty())
      score -= static_cast<double>(options.alibi_slopes[at]) * static_cast<double>(seen - 1 - token);
    scores.push_back(score);
  }
  double most = -INFINITY, sum = 0;
  for (const double score : scores) most = std::max(most, score);
  if (!options.sink_logits.empty()) {
    most = std::max(most, static_cast<double>(options.sink_logits[at]));
    sum = std::exp(static_cast<double>(options.sink_logits[at]) - most);
  }
  RowAttention row{std::vector<double>(static_cast<std::size_t>(v.head_dim)), -INFINITY};
  for (const double score : scores) sum += std::exp(score - most);
  if (sum == 0) return row;
  for (std::size_t t = 0; t < scores.size(); ++t) {
    const float *value = v.row(first + static_cast<Index>(t), of);
    const double weight = std::exp(scores[t] - most) / sum;
    for (std::size_t i = 0; i < row.output.size(); ++i)
      row.output[i] += weight * static_cast<double>(value[i]);
  }
  row.lse = most + std::log(sum);
  return row;
}

/// How far what a cache found is from that: outputs relative to their norm, and the largest difference
/// of logarithms. seen(token): tokens that a query sees at most.
struct RuleDistance {
  double output = 0, lse = 0;
};

template <class Seen>
RuleDistance rule_distance(const Options &options, TensorView<const float> q, TensorView<const float> k,
                           TensorView<const float> v, TensorView<const float> out,
                           TensorView<const float> lse, Seen &&seen) {
  RuleDistance distance;
  double difference = 0, norm = 0;
  for (Index token = 0; token < q.tokens; ++token) {
    for (Index head = 0; head < q.heads; ++head) {
      const RowAttention row = attend_row(options, q.row(token, head), head, k, v, seen(token));
      for (std::size_t i = 0; i < row.output.size(); ++i) {
        const double error = static_cast<double>(out.row(token, head)[i]) - row.output[i];
        difference += error * error;
        norm += row.output[i] * row.output[i];
      }
      const auto found = static_cast<double>(*lse.row(token, head));
      if (found != row.lse) distance.lse = std::max(distance.lse, std::abs(found - row.lse));
    }
  }
  distance.output = std::sqrt(difference / std::max(norm, 1e-30));
  return distance;
}

/// Options that say what becomes of scores, one rule each and all together.
inline std::vector<Options> score_rules(const Options &base) {
  std::vector<Options> all;
  const auto heads = static_cast<std::size_t>(base.query_heads);
  std::vector<float> slopes, logits;
  for (std::size_t head = 0; head < heads; ++head) {
    slopes.push_back(.02f / static_cast<float>(1 + head));
    logits.push_back(2 - static_cast<float>(head % 3));
  }
  const auto add = [&](auto &&change) { change(all.emplace_back(base)); };
  const auto add_window = [&](int tokens) {
    add([&](Options &options) { options.attention_window = tokens; });
  };
  add([](Options &) {});
  add_window(1);
  add_window(50);
  add_window(200);
  add([](Options &options) { options.soft_cap = 1.5f; });
  add([&](Options &options) { options.alibi_slopes = slopes; });
  add([&](Options &options) { options.sink_logits = logits; });
  add([&](Options &options) {
    options.attention_window = 131;
    options.soft_cap = 2;
    options.alibi_slopes = slopes;
    options.sink_logits = logits;
  });
  return all;
}

}  // namespace squat::test
