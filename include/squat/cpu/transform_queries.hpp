#pragma once

// The queries of a block of rows as the tiles of a context see them: turned back
// by the tile's base position, in the subspace basis, and as weights of the mean
// key's modes.

#include <algorithm>
#include <cstdint>
#include <optional>

#include "squat/attention/rotary.hpp"
#include "squat/cpu/head_coding.hpp"
#include "squat/cpu/integer_matrix.hpp"
#include "squat/cpu/round_weights.hpp"
#include "squat/cpu/row_blocks.hpp"
#include "squat/cpu/workspace.hpp"
#include "squat/quantize/key_quantizer.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

class TileQueries {
 public:
  /// `queries`: [rows, head_dim], read by enter().
  TileQueries(const HeadCoding &coding, float *queries, Index rows, Index head_dim, Scratch &scratch)
      : coding_(coding),
        rows_(rows),
        head_dim_(head_dim),
        queries_{queries, head_dim},
        turned_{scratch.take<float>(rows * head_dim), head_dim},
        basis_{scratch.take<float>(rows * head_dim), head_dim},
        mode_weights_{scratch.take<float>(rows * coding.transform->modes().outputs()),
                      coding.transform->modes().outputs()},
        rounded_{{scratch.take<std::int16_t>(rows * head_dim), head_dim}, scratch.take<float>(rows)},
        rounded_weights_{{scratch.take<std::int16_t>(rows * mode_weights_.stride), mode_weights_.stride},
                         scratch.take<float>(rows)},
        scratch_(scratch.split(ByteMatrix::scratch_bytes(rows, head_dim))) {}

  /// For any coding of that head_dim: modes are fewer than 2 head_dim.
  static std::size_t scratch_bytes(Index rows, Index head_dim) {
    const Index modes = 2 * head_dim;
    return 2 * Scratch::bytes<float>(rows * head_dim) + Scratch::bytes<float>(rows * modes) +
           Scratch::bytes<std::int16_t>(rows * head_dim) + Scratch::bytes<std::int16_t>(rows * modes) +
           2 * Scratch::bytes<float>(rows) + ByteMatrix::scratch_bytes(rows, head_dim);
  }

  /// New queries are in the rows.
  void reset() { entered_ = false; }

  /// Turns and transforms the queries for tiles of that base, unless they are.
  void enter(Index base) {
    if (entered_ && base == base_) return;
    if (base != 0) {
      find_turn(base);
      std::copy(queries_.data, queries_[rows_], turned_.data);
      for (Index row = 0; row < rows_; ++row) turn_->apply(turned_[row]);
    } else {
      turn_.reset();
    }
    entered_ = true;
    base_ = base;
    const QueryTransform &transform = *coding_.transform;
    const IntegerMatrix &words = transform.word_basis(), &modes = transform.modes();
    if (words.outputs() > 0 || modes.outputs() > 0) {
      round_rows(turned(), rows_, head_dim_, rounded_.rows, rounded_.steps);
    }
    if (words.outputs() > 0) words.multiply(rounded_, rows_, 0, head_dim_, basis_);
    if (transform.byte_basis().outputs() > 0) {
      transform.byte_basis().multiply({turned().data, head_dim_}, rows_, basis_, scratch_);
    }
    if (modes.outputs() > 0) {
      modes.multiply(rounded_, rows_, 0, modes.outputs(), mode_weights_);
      round_rows(mode_weights_, rows_, modes.outputs(), rounded_weights_.rows, rounded_weights_.steps);
    }
  }

  /// The rows that meet what a page's codes stand for.
  RowView<const float> in(KeySpace space) const {
    return {space == KeySpace::channels ? turned().data : basis_.data, head_dim_};
  }

  /// scores[r][t] = what the turned mean key of row `row` + t scores, 0 without
  /// one.
  void score_mean(Index row, Index tokens, RowView<float> scores) const {
    if (coding_.transform->modes().outputs() > 0) {
      coding_.tiles->mode_rows.multiply(rounded_weights_, rows_, row, tokens, scores);
    } else {
      for (Index r = 0; r < rows_; ++r) std::fill_n(scores[r], tokens, 0.0f);
    }
  }

 private:
  /// Tiles mostly follow each other at one distance: the next turn is the last one
  /// and that distance's, which saves its cosines and sines. Every so often it is
  /// made anew, so that rounding errors stay below 1e-6.
  void find_turn(Index base) {
    constexpr int most_steps = 16;
    if (entered_ && turn_ && step_ && base - base_ == step_by_ && ++steps_ < most_steps) {
      turn_->follow_by(*step_);
      return;
    }
    steps_ = 0;
    turn_.emplace(*coding_.rotary, -base);
    if (entered_ && base - base_ != step_by_) {
      step_by_ = base - base_;
      step_.emplace(*coding_.rotary, -step_by_);
    }
  }

  RowView<float> turned() const { return base_ == 0 ? queries_ : turned_; }

  HeadCoding coding_;
  Index rows_;
  Index head_dim_;
  RowView<float> queries_;  // [rows, head_dim]
  RowView<float> turned_;
  RowView<float> basis_;
  RowView<float> mode_weights_;  // [rows, modes]
  RoundedRows rounded_;          // of the turned rows
  RoundedRows rounded_weights_;  // of the modes' weights
  Scratch scratch_;
  bool entered_ = false;
  Index base_ = 0;
  std::optional<Turn> turn_;  // by -base_, unless that is 0
  std::optional<Turn> step_;  // by -step_by_
  Index step_by_ = 0;
  int steps_ = 0;  // taken since turn_ was made
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
