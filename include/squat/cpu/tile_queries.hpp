#pragma once

// The queries of a block of rows as the tiles of a context see them: turned back
// by the tile's base position, and in the subspace basis.

#include <Eigen/Core>
#include <algorithm>

#include "squat/cpu/pack_page.hpp"
#include "squat/cpu/sum_values.hpp"
#include "squat/cpu/vector.hpp"
#include "squat/cpu/workspace.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

class TileQueries {
 public:
  /// `queries`: [rows, head_dim], read by enter() and rows().
  TileQueries(const KeyFrame &coding, const float *queries, Index rows, Index head_dim, Scratch &scratch)
      : coding_(coding), queries_(queries), rows_(rows), head_dim_(head_dim) {
    turned_ = scratch.take<float>(rows * head_dim);
    basis_ = scratch.take<float>(rows * head_dim);
    mean_weights_ = scratch.take<float>(rows * head_dim);
    mean_constants_ = scratch.take<float>(rows);
  }

  static std::size_t scratch_bytes(Index rows, Index head_dim) {
    return 3 * Scratch::bytes<float>(rows * head_dim) + Scratch::bytes<float>(rows);
  }

  /// New queries are in the rows.
  void reset() { entered_ = false; }

  /// Turns the queries for tiles of that base, unless they are.
  void enter(Index base) {
    if (entered_ && base == base_) return;
    entered_ = true;
    in_basis_ = false;
    base_ = base;
    if (base != 0) {
      std::copy(queries_, queries_ + rows_ * head_dim_, turned_);
      const Turn turn(*coding_.rotary, -base);
      for (Index row = 0; row < rows_; ++row) turn.apply(turned_ + row * head_dim_);
    }
    if (const float *mean = coding_.quantizer->mean()) {
      const Index stride = coding_.frame->angle_count();
      for (Index row = 0; row < rows_; ++row) {
        mean_constants_[row] = coding_.frame->mean_weights(turned() + row * head_dim_, mean, head_dim_,
                                                           mean_weights_ + row * stride);
      }
    }
  }

  /// The rows [rows, head_dim] that meet what a page's codes stand for.
  const float *in(KeySpace space) {
    if (space == KeySpace::channels) return turned();
    if (!in_basis_) transform();
    in_basis_ = true;
    return basis_;
  }

  /// scores[r][t] += what the turned mean key of row `row` + t scores.
  void add_mean_scores(Index row, Index tokens, float *scores, Index stride) const {
    if (coding_.quantizer->mean() == nullptr) return;
    const Index angles = coding_.frame->angle_count(), apart = coding_.frame->rows();
    Eigen::Map<RowMatrix, 0, Eigen::OuterStride<>> sums(scores, rows_, tokens,
                                                        Eigen::OuterStride<>(stride));
    sums.colwise() += Eigen::Map<const Eigen::VectorXf>(mean_constants_, rows_);
    if (rows_ <= few_rows) {
      sum_rows(mean_weights_, angles, rows_, coding_.frame->angles(row), apart, angles, scores, tokens,
               stride);
    } else {
      sums.noalias() += Eigen::Map<const RowMatrix>(mean_weights_, rows_, angles) *
                        Eigen::Map<const RowMatrix, 0, Eigen::OuterStride<>>(
                            coding_.frame->angles(row), angles, tokens, Eigen::OuterStride<>(apart));
    }
  }

  /// Rows up to which kernels of ours beat a matrix product.
  static constexpr Index few_rows = 32;

 private:
  const float *turned() const { return base_ == 0 ? queries_ : turned_; }

  /// q' = A^-T q
  void transform() {
    const RowMatrix &inverse = coding_.quantizer->basis()->from_basis;
    if (rows_ <= few_rows) {
      std::fill_n(basis_, rows_ * head_dim_, 0.0f);
      sum_rows(turned(), head_dim_, rows_, inverse.data(), head_dim_, head_dim_, basis_, head_dim_,
               head_dim_);
    } else {
      Eigen::Map<RowMatrix>(basis_, rows_, head_dim_).noalias() =
          Eigen::Map<const RowMatrix>(turned(), rows_, head_dim_) * inverse;
    }
  }

  KeyFrame coding_;
  const float *queries_;
  Index rows_;
  Index head_dim_;
  bool entered_ = false;
  bool in_basis_ = false;
  Index base_ = 0;
  float *turned_ = nullptr;          // [rows, head_dim]
  float *basis_ = nullptr;           // [rows, head_dim]
  float *mean_weights_ = nullptr;    // [rows, angle_count]
  float *mean_constants_ = nullptr;  // [rows]
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
