#pragma once

// One interface to every key coding: what is learnt from a head's statistics,
// and how a page of its keys becomes codes.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "squat/coding/affine.hpp"
#include "squat/coding/bit_allocation.hpp"
#include "squat/coding/chunks.hpp"
#include "squat/coding/coding.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/coding/evidence.hpp"
#include "squat/coding/inverse.hpp"
#include "squat/coding/moments.hpp"
#include "squat/coding/orthogonal_rounding.hpp"
#include "squat/coding/query_statistics.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/coding/rounded_matrix.hpp"
#include "squat/coding/subspace_basis.hpp"
#include "squat/coding/trellis_quantizer.hpp"
#include "squat/core/config.hpp"
#include "squat/core/element_range.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// What the codes of a page's keys stand for.
enum class KeySpace {
  channels,  ///< the head's channels, every one at the same width
  basis,     ///< coordinates in the subspace basis, widths by its allocation
};

/// What queries a basis is learnt for.
enum class QueryWeighting {
  equal,      ///< all alike
  attention,  ///< each by what errors in the keys that it sees do (attention_weights.hpp)
};

/// How a page of a head's keys was coded, and, where in the basis or there was a choice, the squared
/// errors of both ways in the metric of the queries.
struct CodedKeys {
  KeySpace space = KeySpace::channels;
  Codes kind = Codes::scalar;  ///< of up to 3 bits
  float basis_error = 0;
  float plain_error = 0;
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

  /// Fixes what the coding takes from a prompt. Before it, and without queries,
  /// rounding is plain. frame: the tile frame that keys are coded in, or null. Returns what speaks for
  /// having learnt.
  template <class Real = double>
  Evidence learn(const QueryStatistics &statistics, const TileFrame *frame,
                 QueryWeighting weighting = QueryWeighting::equal) {
    if (!learns_from_prompt(coding_)) return {};
    const KeySums keys(statistics, frame);
    if (frame != nullptr) mean_ = rounded_key_mean(keys.mean);
    const Matrix<Real> C = weighting == QueryWeighting::equal ? query_moment<Real>(statistics)
                                                              : attention_metric<Real>(statistics);
    const Matrix<Real> covariance = key_covariance<Real>(statistics, frame, keys);
    const Evidence evidence = evidence_of(statistics, frame, keys, covariance);
    if (coding_ == Coding::subspace) {
      basis_ = learn_subspace_basis<Real>(C, covariance, bits_);
      return evidence;
    }
    // A tile frame's mean is known only now: what keys deviate from it stands
    // in for the range of a group.
    std::vector<double> range = statistics.mean_range();
    if (frame != nullptr) {
      for (Index i = 0; i < covariance.rows(); ++i) {
        range[static_cast<std::size_t>(i)] =
            std::sqrt(std::max(static_cast<double>(covariance(i, i)), 0.0));
      }
    }
    rounding_ = learn_orthogonal_rounding<Real>(C, range, options_);
    const RowMatrix &feedback = rounding_->feedback;
    if (!std::all_of(feedback.data(), feedback.data() + feedback.size(), OrthogonalRounding::is_factor))
      rounding_.reset();
    return evidence;
  }

  /// Takes other widths than the head's own: of the basis' coordinates, and of plain pages.
  void allocate(const BitAllocation &allocation, int plain_bits) {
    basis_->allocation = allocation;
    uniform_ = BitAllocation(plain_bits, head_dim_);
  }

  /// Rounds the basis' matrix, by which queries go, as far as the bits of the keys allow. From then on
  /// it is the definition of the basis, the same for every backend: scores err by the rounding of codes
  /// and of queries alone.
  template <class Real = double>
  void round_basis() {
    if (!basis_ || !basis_->rounded.empty()) return;
    basis_->rounded = rounded_basis(basis_->template queries_to_basis<Real>(), basis_->metric, bits_);
  }

  /// A^-T as far as keys of `bits` bits ask for it. metric: SubspaceBasis::metric.
  static RoundedMatrix rounded_basis(const Eigen::MatrixXd &matrix, std::span<const float> metric,
                                     int bits) {
    if (!rounds_to_bytes(bits)) return round_to_words(matrix);
    // A query's channels range as the metric's diagonal says.
    std::vector<double> widths;
    for (const float weight : metric) widths.push_back(std::sqrt(static_cast<double>(weight)));
    return round_to_bytes(matrix, widths);
  }

  /// Whether a basis is rounded to bytes, else to words, where more bits of the keys want more of the
  /// queries.
  static bool rounds_to_bytes(int bits) { return bits <= most_bits_of_bytes; }

  /// A of a basis that was rounded.
  void invert_rounded() {
    if (!basis_) return;
    basis_->to_basis.resize(head_dim_, head_dim_);
    basis_->rounded.write_transposed(basis_->to_basis.data());
    std::vector<Index> pivots(static_cast<std::size_t>(head_dim_));
    invert(basis_->to_basis.data(), head_dim_, pivots.data());
  }

  /// Lets go of the rounded matrix too, where a backend keeps it.
  void drop_rounded() {
    if (basis_) basis_->rounded = {};
  }

  /// Lets go of the basis' matrix, where a backend keeps it and gives it to quantize().
  void drop_matrix() {
    if (basis_) basis_->to_basis = {};
  }
  /// Lets go of the variances of its coordinates, once bits are shared out for good.
  void drop_variance() {
    if (basis_) basis_->variance = {};
  }

  /// Makes it what it was before learn().
  void forget() {
    mean_.clear();
    rounding_.reset();
    basis_.reset();
    if (bits_ < 16) uniform_ = BitAllocation(bits_, head_dim_);
  }

  /// The mean key before its rotary embedding, [head_dim], which is taken off
  /// keys before they are coded; null for none.
  const float *mean() const { return mean_.empty() ? nullptr : mean_.data(); }

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
  /// space that is returned says; scales [head_dim]. trellis: of coordinates in the basis, where
  /// that errs less than scalar codes; or null. wanted: the space, where there is a basis; else the one
  /// of less error is taken. to_basis: A, [coordinate, channel], after drop_matrix().
  template <class Scalar>
  CodedKeys quantize(const Scalar *keys, Index tokens, Scalar *scratch, std::uint8_t *codes,
                     AffineScale *scales, TrellisQuantizer *trellis = nullptr,
                     std::optional<KeySpace> wanted = {}, const Scalar *to_basis = nullptr) const {
    if (rounding_) {
      round_orthogonal(*rounding_, keys, tokens, scratch, [&](Index channel, Scalar *row) {
        scales[channel] = quantize_affine(row, tokens, bits_, fit_, codes + channel * tokens, row);
      });
      return {};
    }
    if (!basis_) {
      quantize_channels(keys, tokens, scratch, fit_, codes, scales);
      return {};
    }
    CodedKeys coded;
    if (wanted != KeySpace::channels) {
      std::fill_n(scratch, head_dim_ * tokens, Scalar{0});
      if (to_basis == nullptr) to_basis = basis_->to_basis.data();
      add_product<Scalar>(strided_rows(to_basis, head_dim_, head_dim_),
                          strided_rows(keys, head_dim_, tokens),
                          strided_rows(scratch, head_dim_, tokens));
      const BasisErrors scalar = quantize_coordinates(scratch, tokens, codes, scales);
      const float narrow =
          trellis == nullptr ? scalar.narrow : quantize_narrow(*trellis, tokens, scratch, codes, scales);
      coded = {.space = KeySpace::basis,
               .kind = narrow < scalar.narrow ? Codes::trellis : Codes::scalar,
               .basis_error = scalar.wide + std::min(narrow, scalar.narrow),
               .plain_error = channel_error(keys, tokens)};
      if (wanted == KeySpace::basis || coded.basis_error <= coded.plain_error) {
        if (trellis != nullptr && coded.kind == Codes::scalar)
          quantize_coordinates(scratch, tokens, codes, scales);
        return coded;
      }
    }
    // A page that the basis does not suit (keys unlike those it was learnt
    // from) is coded plainly: never worse than plain.
    quantize_channels(keys, tokens, scratch, AffineFit::minmax, codes, scales);
    coded.space = KeySpace::channels;
    coded.kind = Codes::scalar;
    return coded;
  }

  /// What was learnt. The matrix is empty after drop_rounded(), and the widths of values are the
  /// backend's to add.
  HeadRecord record() const {
    HeadRecord record;
    record.mean = mean_;
    if (basis_) {
      record.matrix = basis_->rounded;
      record.metric = basis_->metric;
      record.weight = basis_->weight;
      record.variance = basis_->variance;
      for (const CodeRun &run : basis_->allocation.runs())
        record.widths.push_back({run.bits, static_cast<std::int32_t>(run.channels)});
    }
    if (rounding_) {
      record.order.assign(rounding_->order.begin(), rounding_->order.end());
      record.block = static_cast<std::int32_t>(rounding_->block);
      for (Index i = 0; i < head_dim_; ++i) {
        const float *row = rounding_->feedback.data() + i * head_dim_;
        record.feedback.insert(record.feedback.end(), row, row + i);
      }
    }
    return record;
  }

  /// Takes in what record() gave elsewhere, with its matrix. It was checked.
  void adopt(const HeadRecord &record) {
    forget();
    mean_ = record.mean;
    if (!record.matrix.empty()) {
      SubspaceBasis basis;
      basis.rounded = record.matrix;
      basis.metric = record.metric;
      basis.weight = record.weight;
      basis.variance = record.variance;
      for (const WidthRecord &run : record.widths) basis.allocation.add(run.bits, run.channels);
      basis_ = std::move(basis);
    }
    if (!record.order.empty()) {
      OrthogonalRounding rounding;
      rounding.order.assign(record.order.begin(), record.order.end());
      rounding.block = record.block;
      rounding.feedback = RowMatrix::Zero(head_dim_, head_dim_);
      const float *entry = record.feedback.data();
      for (Index i = 0; i < head_dim_; ++i, entry += i - 1)
        std::copy_n(entry, i, rounding.feedback.data() + i * head_dim_);
      rounding_ = std::move(rounding);
    }
  }

  /// Bytes of what was learnt.
  std::size_t bytes() const {
    return (rounding_ ? rounding_->bytes() : 0) + (basis_ ? basis_->bytes() : 0) +
           mean_.size() * sizeof(float);
  }

 private:
  static constexpr int most_bits_of_bytes = 2;  // at 3, bytes add 8 % to the KL

  int plain_bits() const { return uniform_.runs().front().bits; }

  template <class Scalar>
  void quantize_channels(const Scalar *keys, Index tokens, Scalar *scratch, AffineFit fit,
                         std::uint8_t *codes, AffineScale *scales) const {
    for (Index channel = 0; channel < head_dim_; ++channel) {
      const Index first = channel * tokens;
      scales[channel] =
          quantize_affine(keys + first, tokens, plain_bits(), fit, codes + first, scratch + first);
    }
  }

  /// Squared errors in the metric of the queries: of what trellis codes can stand for, and of the rest.
  struct BasisErrors {
    float narrow = 0, wide = 0;
  };

  /// coordinates: of keys in the basis, channel-major.
  template <class Scalar>
  BasisErrors quantize_coordinates(const Scalar *coordinates, Index tokens, std::uint8_t *codes,
                                   AffineScale *scales) const {
    BasisErrors errors;
    for (const CodeRun &run : basis_->allocation.runs()) {
      float &error = run.bits <= most_trellis_bits ? errors.narrow : errors.wide;
      for (Index i = run.first; i < run.first + run.channels; ++i) {
        const Scalar *y = coordinates + i * tokens;
        scales[i] = quantize_affine(y, tokens, run.bits, fit_, codes + i * tokens);
        error += affine_error(y, tokens, codes + i * tokens, scales[i]);
      }
    }
    for (Index i = basis_->allocation.coded_channels(); i < head_dim_; ++i) {
      const Scalar *y = coordinates + i * tokens;
      const Scalar mean = sum_chunks(tokens, [&](Index t) { return load_chunk(y + t); }).sum() /
                          static_cast<Scalar>(tokens);
      scales[i] = {to_half_saturated(mean), half(smallest_scale)};
      errors.wide += constant_error(y, tokens, static_cast<Scalar>(scales[i].zero));
    }
    return errors;
  }

  /// Makes the codes of up to 3 bits that quantize_coordinates() left trellis codes. Returns their
  /// squared error.
  float quantize_narrow(TrellisQuantizer &trellis, Index tokens, const float *coordinates,
                        std::uint8_t *codes, AffineScale *scales) const {
    float error = 0;
    for (const CodeRun &run : basis_->allocation.runs()) {
      if (run.bits > most_trellis_bits) continue;
      const Index first = run.first * tokens;
      error += trellis.quantize_affine(coordinates + first, run.channels, tokens, run.bits,
                                       codes + first, scales + run.first);
    }
    return error;
  }

  /// The squared error that plain coding would make, in the same metric.
  template <class Scalar>
  Scalar channel_error(const Scalar *keys, Index tokens) const {
    Scalar error = 0;
    for (Index channel = 0; channel < head_dim_; ++channel) {
      error += basis_->metric[static_cast<std::size_t>(channel)] *
               minmax_error(keys + channel * tokens, tokens, plain_bits());
    }
    return error;
  }

  Coding coding_;
  AffineFit fit_;
  OrthogonalOptions options_;
  int bits_;
  Index head_dim_;
  BitAllocation uniform_;
  std::vector<float> mean_;
  std::optional<OrthogonalRounding> rounding_;
  std::optional<SubspaceBasis> basis_;
};

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
