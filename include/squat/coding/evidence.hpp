#pragma once

// Whether tokens were text: what a head's statistics say of it.
//
// A cache is warmed up with zeros, with one token over and over, with random numbers. A coding that
// learnt from those would serve every later prompt badly. Their moments tell: keys that repeat vary in
// no more directions than there are different ones, and noise varies in all directions alike, which
// keys and queries of a model never do. SmolLM2-135M, head_dim 64, 512 tokens: keys of prose, code and
// random characters have an effective rank of 12 to 23 in a layer, 4.7 to 5.3 in the first, whose keys
// know of no context; one token repeated has 0 to 2.9, a loop of five 2.3 to 3.7, noise 57.
//
// In the first layer equal tokens have equal keys, so that a loop of n varies in n - 1 directions, most
// of them noticeably (varied_directions(): 3.9 of five, 7.2 of nine). Text does in 20 to 23 there, also
// where few of them have most of the variance, as in Qwen2.5-0.5B (effective rank 2.8 to 3.2). Behind
// it, what is noticeable of a loop is its context too.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "squat/coding/inverse.hpp"
#include "squat/coding/matrix_product.hpp"
#include "squat/coding/moments.hpp"
#include "squat/coding/query_statistics.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// What is known of one KV head.
struct Evidence {
  // effective_rank() of keys before their rotary embedding, and of queries.
  double key_directions = 0;  ///< of the correlation of keys
  double key_variety = 0;     ///< varied_directions() of the correlation, where key_directions are few
  double key_rank = 0;        ///< of their covariance
  double query_rank = 0;      ///< of the moments of queries

  double draws = 0;     ///< of the keys that it is known by
  double queries = 0;   ///< how many there were
  double channels = 0;  ///< head_dim
};

/// In how many directions a covariance spreads: (sum l)^2 / sum l^2 over its eigenvalues, d where all
/// are alike, 1 where channels vary as one.
template <class Real>
double effective_rank(const Matrix<Real> &covariance) {
  double trace = 0, squares = 0;
  for (Index i = 0; i < covariance.rows(); ++i) trace += static_cast<double>(covariance(i, i));
  for (Index i = 0; i < covariance.size(); ++i) {
    squares += static_cast<double>(covariance.data()[i]) * static_cast<double>(covariance.data()[i]);
  }
  return squares > 0 ? trace * trace / squares : 0;
}

/// The covariance of channels brought to a deviation of 1. Those whose deviation, squared, is at most
/// `least` [channel] do not vary, and are 0.
template <class Real>
Matrix<Real> correlation(Matrix<Real> covariance, const std::vector<double> &least) {
  const Index d = covariance.rows();
  std::vector<double> inverse;
  for (Index i = 0; i < d; ++i) {
    const auto square = static_cast<double>(covariance(i, i));
    inverse.push_back(square > least[static_cast<std::size_t>(i)] ? 1 / std::sqrt(square) : 0.0);
  }
  for (Index i = 0; i < d; ++i) {
    for (Index j = 0; j < d; ++j) {
      covariance(i, j) *=
          static_cast<Real>(inverse[static_cast<std::size_t>(i)] * inverse[static_cast<std::size_t>(j)]);
    }
  }
  return covariance;
}

/// In how many directions a covariance varies noticeably: the sum over its eigenvalues of l / (l + e), e
/// a tenth of their mean.
template <class Real>
double varied_directions(Matrix<Real> covariance) {
  const Index d = covariance.rows();
  const Real noticeable = covariance.trace() / static_cast<Real>(10 * d);
  if (!(noticeable > 0)) return 0;
  for (Index i = 0; i < d; ++i) covariance(i, i) += noticeable;
  std::vector<Index> pivots(static_cast<std::size_t>(d));
  invert(covariance.data(), d, pivots.data());
  return static_cast<double>(d) - static_cast<double>(noticeable * covariance.trace());
}

/// Directions of a head's keys that make tokens text, for a head with enough channels and keys.
inline constexpr double fewest_directions = 4;
/// Those that vary noticeably, in the first layer.
inline constexpr double fewest_varied_directions = 16;

/// covariance: of the keys, see key_covariance(). In a tile frame, whose rows turn equal keys apart, the
/// means of its rows, turned back, tell more: a loop of few tokens has few of them.
template <class Real>
Evidence evidence_of(const QueryStatistics &statistics, const TileFrame *frame, const KeySums &keys,
                     const Matrix<Real> &covariance) {
  // What rounding to 16 bits makes of keys that are all the same: a channel's square by 2^-22 / 3 at
  // most.
  constexpr double rounding = 1e-7;
  const Index d = statistics.head_dim(), rows = statistics.rows();
  const std::span<const double> row_counts = statistics.sums(&HeadSums::row_counts);
  std::vector<double> least;
  for (Index i = 0; i < d; ++i) {
    const auto square = static_cast<std::size_t>(triangle_index(i, i));
    least.push_back(rounding * statistics.sums(&HeadSums::key_moment)[square] /
                    std::max(statistics.keys(), 1.0));
  }
  Evidence evidence;
  const auto note_keys = [&](const Matrix<Real> &of_keys) {
    const Matrix<Real> of_channels = correlation(of_keys, least);
    evidence.key_directions = effective_rank(of_channels);
    if (evidence.key_directions < fewest_directions)
      evidence.key_variety = varied_directions(of_channels);
    evidence.key_rank = effective_rank(of_keys);
  };
  evidence.draws = statistics.keys();
  if (frame == nullptr) {
    note_keys(covariance);
  } else {
    Matrix<Real> deviations(d, rows);
    evidence.draws = 0;
    const double *sum = keys.turned_back.data();
    for (Index row = 0; row < rows; ++row, sum += d) {
      const double count = row_counts[static_cast<std::size_t>(row)];
      if (count > 0) evidence.draws += 1;
      const double root = std::sqrt(count), factor = count > 0 ? 1 / root : 0.0;
      for (Index i = 0; i < d; ++i) {
        const double mean = keys.mean[static_cast<std::size_t>(i)];
        deviations(i, row) = static_cast<Real>(sum[i] * factor - root * mean);
      }
    }
    Matrix<Real> of_rows = matrix_product<Real>(deviations, transposed<Real>(deviations));
    for (Index i = 0; i < d * d; ++i)
      of_rows.data()[i] /= static_cast<Real>(std::max(evidence.draws, 1.0));
    note_keys(of_rows);
  }
  evidence.query_rank = effective_rank(query_moment<Real>(statistics));
  evidence.queries = statistics.sums(&HeadSums::queries)[0];
  evidence.channels = static_cast<double>(d);
  return evidence;
}

/// Whether the heads of a layer, all together, have seen something to learn from: not the same few keys
/// again and again, and not noise. biased_first: it is the first layer of a model whose keys have biases
/// (Options::keys_have_biases), where few directions say little. Keys that are a constant before their
/// rotary embedding was left out would pass for varied there.
inline bool is_of_text(std::span<const Evidence> heads, bool biased_first) {
  constexpr double most_of_noise = .9;
  // The share of what n draws of noise show: of d directions, n d / (n + d).
  const auto of_noise = [](double rank, double draws, double channels) {
    return draws > 0 ? rank * (draws + channels) / (draws * channels) : 0;
  };
  double directions = 0, limit = 0, varied = 0, varied_limit = 0, key_noise = 0, query_noise = 0;
  for (const Evidence &head : heads) {
    directions += head.key_directions;
    limit += std::min({fewest_directions, head.channels / 8, head.draws / 4});
    const double enough = std::min({fewest_varied_directions, head.channels / 4, head.draws / 8});
    varied += head.key_directions < fewest_directions ? head.key_variety : enough;
    varied_limit += enough;
    key_noise += of_noise(head.key_rank, head.draws, head.channels);
    query_noise += of_noise(head.query_rank, head.queries, head.channels);
  }
  const bool varies = directions >= limit || (biased_first && varied >= varied_limit);
  const double most = most_of_noise * static_cast<double>(heads.size());
  return varies && directions > 0 && !(key_noise > most && query_noise > most);
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
