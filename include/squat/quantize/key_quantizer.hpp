#pragma once

// One interface to every key coding: what is learnt from a head's statistics,
// and how a page of its keys becomes codes.

#include <Eigen/Core>
#include <cstdint>
#include <optional>

#include "squat/config.hpp"
#include "squat/quantize/affine.hpp"
#include "squat/quantize/coding.hpp"
#include "squat/quantize/orthogonal_rounding.hpp"
#include "squat/quantize/query_statistics.hpp"

namespace squat {

/// Codes the keys of one KV head, a page at a time: an affine group a channel
/// and page.
class KeyQuantizer {
 public:
  /// `orthogonal` is read for Coding::orthogonal alone.
  KeyQuantizer(Coding coding, AffineFit fit, const OrthogonalOptions &orthogonal)
      : coding_(coding), fit_(fit), options_(orthogonal) {}

  /// Whether the coding depends on the queries and keys of a prompt.
  static constexpr bool learns(Coding coding) { return coding == Coding::orthogonal; }

  /// Fixes what the coding takes from a prompt. Before it, and without queries,
  /// rounding is plain.
  void learn(const QueryStatistics &statistics) {
    if (!learns(coding_)) return;
    rounding_ = learn_orthogonal_rounding(statistics.query_moment(), statistics.key_range(), options_);
  }

  /// Codes a page of keys at `bits` bits. keys: channel-major [head_dim,
  /// tokens]; scratch: as large; codes: channel-major [head_dim, tokens];
  /// scales [head_dim].
  void quantize(Eigen::Map<const RowMatrix> keys, int bits, Eigen::Map<RowMatrix> scratch,
                std::uint8_t *codes, AffineScale *scales) const {
    const auto round = [&](Index channel, Eigen::Map<const Eigen::ArrayXf> target,
                           Eigen::Map<Eigen::ArrayXf> rounded) {
      scales[channel] = quantize_affine(target, bits, fit_, codes + channel * keys.cols(), rounded);
    };
    if (rounding_) {
      round_orthogonal(*rounding_, keys, scratch, round);
      return;
    }
    for (Index channel = 0; channel < keys.rows(); ++channel) {
      round(channel, {keys.row(channel).data(), keys.cols()},
            {scratch.row(channel).data(), keys.cols()});
    }
  }

  /// Bytes of what was learnt.
  std::size_t bytes() const { return rounding_ ? rounding_->bytes() : 0; }

 private:
  Coding coding_;
  AffineFit fit_;
  OrthogonalOptions options_;
  std::optional<OrthogonalRounding> rounding_;
};

}  // namespace squat
