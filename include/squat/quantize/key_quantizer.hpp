#pragma once

// One interface to every key coding: what is learnt from a head's statistics,
// and how a page of its keys becomes codes.

#include <Eigen/Core>
#include <cstdint>
#include <optional>

#include "squat/attention/rotary.hpp"
#include "squat/config.hpp"
#include "squat/instruction_set.hpp"
#include "squat/quantize/affine.hpp"
#include "squat/quantize/bit_allocation.hpp"
#include "squat/quantize/coding.hpp"
#include "squat/quantize/orthogonal_rounding.hpp"
#include "squat/quantize/query_statistics.hpp"
#include "squat/quantize/subspace_basis.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// What the codes of a page's keys stand for.
enum class KeySpace {
  channels,  ///< the head's channels, every one at the same width
  basis,     ///< coordinates in the subspace basis, widths by its allocation
};

/// Codes the keys of one KV head, a page at a time: an affine group a channel
/// (or coordinate) and page.
class KeyQuantizer {
 public:
  /// `bits`: of a code on average. `orthogonal` is read for Coding::orthogonal
  /// alone.
  KeyQuantizer(Coding coding, AffineFit fit, const OrthogonalOptions &orthogonal, int bits,
               Index head_dim)
      : coding_(coding),
        fit_(fit),
        options_(orthogonal),
        bits_(bits),
        head_dim_(head_dim),
        uniform_(bits < 16 ? BitAllocation(bits, head_dim) : BitAllocation()) {}

  int bits() const { return bits_; }
  Index head_dim() const { return head_dim_; }

  /// Whether the coding depends on the queries and keys of a prompt.
  static constexpr bool learns(Coding coding) { return coding != Coding::plain; }

  /// Fixes what the coding takes from a prompt. Before it, and without queries,
  /// rounding is plain. frame: the tile frame that keys are coded in, or null.
  void learn(const QueryStatistics &statistics, const TileFrame *frame) {
    if (!learns(coding_)) return;
    if (frame != nullptr) mean_ = statistics.key_mean(frame).cast<float>();
    const Eigen::MatrixXd &C = statistics.query_moment();
    if (coding_ == Coding::subspace) {
      basis_ = learn_subspace_basis(C, statistics.key_covariance(frame), bits_);
      return;
    }
    // A tile frame's mean is known only now: what keys deviate from it stands
    // in for the range of a group.
    const Eigen::ArrayXd range =
        frame == nullptr ? statistics.key_range()
                         : statistics.key_covariance(frame).diagonal().array().max(0.0).sqrt().eval();
    rounding_ = learn_orthogonal_rounding(C, range, options_);
  }

  /// The mean key before its rotary embedding, [head_dim], which is taken off
  /// keys before they are coded; null for none.
  const float *mean() const { return mean_.size() > 0 ? mean_.data() : nullptr; }

  /// The basis of KeySpace::basis; null if no page is coded there.
  const SubspaceBasis *basis() const { return basis_ ? &*basis_ : nullptr; }

  /// How channels are rounded with feedback; null if they are not.
  const OrthogonalRounding *rounding() const { return rounding_ ? &*rounding_ : nullptr; }

  /// The widths of a page's codes.
  const BitAllocation &allocation(KeySpace space) const {
    return space == KeySpace::basis ? basis_->allocation : uniform_;
  }

  /// Codes a page of keys, their mean taken off. keys, scratch: channel-major
  /// [head_dim, tokens]; codes: likewise, as wide as the allocation of the
  /// space that is returned says; scales [head_dim].
  KeySpace quantize(Eigen::Map<const RowMatrix> keys, Eigen::Map<RowMatrix> scratch, std::uint8_t *codes,
                    AffineScale *scales) const {
    if (rounding_) {
      round_orthogonal(*rounding_, keys, scratch,
                       [&](Index channel, Eigen::Map<const Eigen::ArrayXf> target,
                           Eigen::Map<Eigen::ArrayXf> rounded) {
                         scales[channel] = quantize_affine(target, bits_, fit_,
                                                           codes + channel * keys.cols(), rounded);
                       });
      return KeySpace::channels;
    }
    if (!basis_) {
      quantize_channels(keys, scratch, fit_, codes, scales);
      return KeySpace::channels;
    }
    const float error = quantize_in_basis(keys, scratch, codes, scales);
    if (error <= channel_error(keys)) return KeySpace::basis;
    // A page that the basis does not suit (keys unlike those it was learnt
    // from) is coded plainly: never worse than plain.
    quantize_channels(keys, scratch, AffineFit::minmax, codes, scales);
    return KeySpace::channels;
  }

  /// Bytes of what was learnt.
  std::size_t bytes() const {
    return (rounding_ ? rounding_->bytes() : 0) + (basis_ ? basis_->bytes() : 0) +
           static_cast<std::size_t>(mean_.size()) * sizeof(float);
  }

 private:
  using Row = Eigen::Map<const Eigen::ArrayXf>;

  void quantize_channels(Eigen::Map<const RowMatrix> keys, Eigen::Map<RowMatrix> scratch, AffineFit fit,
                         std::uint8_t *codes, AffineScale *scales) const {
    const Index tokens = keys.cols();
    for (Index channel = 0; channel < keys.rows(); ++channel) {
      scales[channel] = quantize_affine(Row(keys.row(channel).data(), tokens), bits_, fit,
                                        codes + channel * tokens, {scratch.row(channel).data(), tokens});
    }
  }

  /// Returns the squared error, in the metric of the queries.
  float quantize_in_basis(Eigen::Map<const RowMatrix> keys, Eigen::Map<RowMatrix> scratch,
                          std::uint8_t *codes, AffineScale *scales) const {
    const Index tokens = keys.cols();
    scratch.noalias() = basis_->to_basis * keys;
    float error = 0;
    for (const CodeRun &run : basis_->allocation.runs()) {
      for (Index i = run.first; i < run.first + run.channels; ++i) {
        const Row y(scratch.row(i).data(), tokens);
        scales[i] = quantize_affine(y, run.bits, fit_, codes + i * tokens);
        error += affine_error(y, codes + i * tokens, scales[i]);
      }
    }
    for (Index i = basis_->allocation.coded_channels(); i < keys.rows(); ++i) {
      const Row y(scratch.row(i).data(), tokens);
      scales[i] = {to_half_saturated(y.mean()), half(smallest_scale)};
      error += (y - static_cast<float>(scales[i].zero)).square().sum();
    }
    return error;
  }

  /// The squared error that quantize_channels() would make, in the same metric.
  float channel_error(Eigen::Map<const RowMatrix> keys) const {
    float error = 0;
    for (Index channel = 0; channel < keys.rows(); ++channel) {
      error += basis_->metric[channel] * minmax_error(Row(keys.row(channel).data(), keys.cols()), bits_);
    }
    return error;
  }

  Coding coding_;
  AffineFit fit_;
  OrthogonalOptions options_;
  int bits_;
  Index head_dim_;
  BitAllocation uniform_;
  Eigen::VectorXf mean_;
  std::optional<OrthogonalRounding> rounding_;
  std::optional<SubspaceBasis> basis_;
};

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
