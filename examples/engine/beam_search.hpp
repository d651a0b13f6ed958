#pragma once

// The most probable continuations of a prompt, as beam search finds them.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "engine.hpp"

namespace engine {

/// A continuation, and the logarithm of its probability.
struct Beam {
  std::vector<int> tokens;
  double log_probability = 0;
};

/// A beam one token longer.
struct Extension {
  std::size_t parent;
  int token;
  double log_probability;
};

/// The `width` most probable extensions of beams, by the logits behind each: [beams, vocabulary].
/// Falling.
inline std::vector<Extension> extend(std::span<const Beam> beams, const RowMatrix &logits,
                                     std::size_t width) {
  std::vector<Extension> all;
  for (std::size_t beam = 0; beam < beams.size(); ++beam) {
    const Eigen::RowVectorXd row = logits.row(static_cast<Eigen::Index>(beam)).cast<double>();
    const double most = row.maxCoeff(), log_sum = most + std::log((row.array() - most).exp().sum());
    for (Eigen::Index token = 0; token < row.cols(); ++token) {
      all.push_back({beam, static_cast<int>(token), beams[beam].log_probability + row(token) - log_sum});
    }
  }
  const auto best = all.begin() + static_cast<std::ptrdiff_t>(std::min(width, all.size()));
  std::partial_sort(all.begin(), best, all.end(), [](const Extension &a, const Extension &b) {
    return a.log_probability > b.log_probability;
  });
  return {all.begin(), best};
}

/// Continues a prompt by `length` tokens, at most `width` beams at a time. They share what is packed of
/// the prompt and of each other.
inline std::vector<Beam> search_beams(Engine &engine, const squat::ModelOptions &options,
                                      std::span<const int> prompt, std::size_t width, int length) {
  const std::unique_ptr<ModelCache> cache = engine.make_cache(options);
  std::vector<squat::SequenceId> sequences = {cache->add_sequence()};
  std::vector<int> tokens(prompt.begin(), prompt.end());
  std::vector<SequenceRows> rows = {
      {cache.get(), sequences[0], static_cast<squat::Index>(tokens.size())}};
  std::vector<Beam> beams(1);
  for (int step = 0; step < length; ++step) {
    const std::vector<Extension> next = extend(beams, engine.forward(tokens, rows), width);
    while (sequences.size() < next.size()) sequences.push_back(cache->fork(sequences[0]));
    std::vector<squat::SequenceId> parents;
    std::vector<Beam> longer;
    tokens.clear();
    rows.clear();
    for (const Extension &extension : next) {
      parents.push_back(sequences[extension.parent]);
      longer.push_back({beams[extension.parent].tokens, extension.log_probability});
      longer.back().tokens.push_back(extension.token);
      tokens.push_back(extension.token);
      rows.push_back({cache.get(), sequences[rows.size()]});
    }
    cache->reorder(sequences, parents);
    beams = std::move(longer);
  }
  return beams;
}

}  // namespace engine
