#pragma once

// The queries of a block of rows as the tiles of a context see them: turned back
// by the tile's base position, in the subspace basis, and as weights of the mean
// key's modes. Neighbouring tiles go together: a matrix is read once for all of their
// rows.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>

#include "squat/cache/call.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/mean_modes.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/cpu/head_coding.hpp"
#include "squat/cpu/kernels/integer_matrix.hpp"
#include "squat/cpu/kernels/round_weights.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"
#include "squat/cpu/workspace.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

template <class Scalar>
class TileQueries {
 public:
  /// `queries`: [rows, head_dim], read by enter(), for up to `tiles` tiles at a time.
  TileQueries(const HeadCoding &coding, const Scalar *queries, Index rows, Index head_dim, Index tiles,
              Scratch &scratch)
      : coding_(coding),
        rows_(rows),
        head_dim_(head_dim),
        tiles_(tiles),
        queries_(queries),
        turned_{scratch.take<Scalar>(tiles * rows * head_dim), head_dim},
        basis_{scratch.take<Scalar>(tiles * rows * head_dim), head_dim},
        mode_weights_{scratch.take<Scalar>(tiles * rows * coding.modes()), coding.modes()},
        rounded_{{scratch.take<std::int16_t>(tiles * rows * head_dim), head_dim},
                 scratch.take<float>(tiles * rows)},
        rounded_weights_{
            {scratch.take<std::int16_t>(tiles * rows * mode_weights_.stride), mode_weights_.stride},
            scratch.take<float>(tiles * rows)},
        bases_(scratch.take<Index>(tiles)),
        scratch_(scratch.split(ByteMatrix::scratch_bytes(tiles * rows, head_dim))) {}

  /// For any coding of that head_dim: modes are fewer than 2 head_dim.
  static std::size_t scratch_bytes(Index rows, Index head_dim, Index tiles) {
    const Index modes = 2 * head_dim, all = tiles * rows;
    return 2 * Scratch::bytes<float>(all * head_dim) + Scratch::bytes<float>(all * modes) +
           Scratch::bytes<std::int16_t>(all * head_dim) + Scratch::bytes<std::int16_t>(all * modes) +
           2 * Scratch::bytes<float>(all) + Scratch::bytes<Index>(tiles) +
           ByteMatrix::scratch_bytes(all, head_dim);
  }

  /// New queries are in the rows.
  void reset() { entered_ = 0; }

  /// Turns and transforms the queries for the tiles of those pages, at most `tiles` of
  /// them, unless they are.
  void enter(std::span<const PageView> pages) {
    const auto last_tile = [&] { return entered_ > 0 ? &bases_[entered_ - 1] : nullptr; };
    const Index *last = last_tile();
    if (last &&
        std::all_of(pages.begin(), pages.end(), [&](auto &page) { return page.base == *last; })) {
      return;
    }
    entered_ = 0;
    for (const PageView &page : pages) {
      if (last_tile() && *last_tile() == page.base) continue;
      SQUAT_ASSERT(entered_ < tiles_);
      turn_rows(page.base, turned_[entered_ * rows_]);
      bases_[entered_++] = page.base;
    }
    transform();
  }

  /// The rows that meet what the codes of a page of those stand for.
  RowView<const Scalar> in(KeySpace space, const PageView &page) const {
    const RowView<Scalar> rows = space == KeySpace::channels ? turned_ : basis_;
    return {rows[first_row(page)], head_dim_};
  }

  /// scores[r][t] = what the turned mean key scores in row t of a page of those with query row + r of
  /// `rows`, 0 without one.
  void score_mean(const PageView &page, Index tokens, Index row, Index rows,
                  RowView<Scalar> scores) const {
    if (mode_weights_.stride > 0) {
      const Index first = first_row(page) + row;
      const RoundedRows weights{{rounded_weights_.rows[first], rounded_weights_.rows.stride},
                                rounded_weights_.steps + first};
      coding_.tiles->mode_rows.multiply(weights, rows, page.row, tokens, scores);
    } else {
      for (Index r = 0; r < rows; ++r) std::fill_n(scores[r], tokens, 0.0f);
    }
  }

 private:
  /// Of the tile that a page lies in: the last one of its base.
  Index first_row(const PageView &page) const {
    Index tile = entered_ - 1;
    while (tile > 0 && bases_[tile] != page.base) --tile;
    return tile * rows_;
  }

  void turn_rows(Index base, Scalar *turned) {
    std::copy_n(queries_, rows_ * head_dim_, turned);
    if (base == 0) {
      turn_.reset();
    } else {
      find_turn(base);
      for (Index row = 0; row < rows_; ++row) turn_->apply(turned + row * head_dim_);
    }
    last_base_ = base;
  }

  void transform() {
    const Index rows = entered_ * rows_;
    const QueryTransform &transform = *coding_.transform;
    if (mode_weights_.stride > 0) weigh_modes(rows);
    if (const IntegerMatrix &words = transform.word_basis(); words.outputs() > 0) {
      round_rows(turned_, rows, head_dim_, rounded_.rows, rounded_.steps);
      words.multiply(rounded_, rows, 0, head_dim_, basis_);
    }
    if (transform.byte_basis().outputs() > 0) {
      transform.byte_basis().template multiply<Scalar>({turned_.data, head_dim_}, rows, basis_,
                                                       scratch_);
    }
  }

  /// What the turned queries weigh the modes of the mean key with. The products take basis_'s place,
  /// which is filled later.
  void weigh_modes(Index rows) {
    const TileTables &tiles = *coding_.tiles;
    for (Index row = 0; row < rows; ++row) {
      multiply_by_mean(tiles.frame.table(), turned_[row], coding_.quantizer->mean(), head_dim_,
                       basis_[row]);
    }
    const Index modes = mode_weights_.stride;
    round_rows(basis_, rows, head_dim_, rounded_.rows, rounded_.steps);
    tiles.mode_products.multiply(rounded_, rows, 0, modes, mode_weights_);
    round_rows(mode_weights_, rows, modes, rounded_weights_.rows, rounded_weights_.steps);
  }

  /// Tiles mostly follow each other at one distance: the next turn is the last one
  /// and that distance's, which saves its cosines and sines. Every so often it is
  /// made anew, so that rounding errors stay below 1e-6.
  void find_turn(Index base) {
    constexpr int most_steps = 16;
    const Index by = base - last_base_;
    if (turn_ && step_ && by == step_by_ && ++steps_ < most_steps) {
      turn_->follow_by(*step_);
      return;
    }
    steps_ = 0;
    turn_.emplace(*coding_.rotary, -base);
    if (by != step_by_) {
      step_by_ = by;
      step_.emplace(*coding_.rotary, -step_by_);
    }
  }

  HeadCoding coding_;
  Index rows_;
  Index head_dim_;
  Index tiles_;
  const Scalar *queries_;         // [rows, head_dim]
  RowView<Scalar> turned_;        // [tiles, rows, head_dim]
  RowView<Scalar> basis_;         // [tiles, rows, head_dim]
  RowView<Scalar> mode_weights_;  // [tiles, rows, modes]
  RoundedRows rounded_;           // of the turned rows
  RoundedRows rounded_weights_;   // of the modes' weights
  Index *bases_;                  // [tiles], the first `entered_` of them
  Scratch scratch_;
  Index entered_ = 0;
  std::optional<Turn> turn_;  // by -last_base_, unless that is 0
  std::optional<Turn> step_;  // by -step_by_
  Index last_base_ = 0;
  Index step_by_ = 0;
  int steps_ = 0;  // taken since turn_ was made
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
