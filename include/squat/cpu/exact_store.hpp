#pragma once

// The exact tokens of one sequence and layer: its sinks and its tail.

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include "squat/attention/context.hpp"
#include "squat/config.hpp"
#include "squat/cpu/row_store.hpp"
#include "squat/instruction_set.hpp"
#include "squat/options.hpp"
#include "squat/tensor.hpp"

namespace squat::cpu::inline SQUAT_API_NAMESPACE {

template <class T>
class ExactStore {
 public:
  Index sinks() const { return sinks_.tokens(); }
  Index tail() const { return tail_.tokens(); }
  std::size_t bytes() const { return sinks_.bytes() + tail_.bytes(); }

  ExactRows<T> tail_rows() const { return tail_.view(); }
  Context<T> context(std::span<const PageView> pages) const {
    return make_context(sinks_.view(), pages, tail_.view());
  }

  /// Makes the room that `job` needs. Nothing but memory changes.
  void reserve(const Options &options, const AppendJob<ExactStore> &job) {
    const auto make_rows = [&](Index capacity) {
      return RowStore<T>(options.kv_heads, options.head_dim, capacity);
    };
    if (sinks_.capacity() < options.sinks) sinks_ = make_rows(options.sinks);
    const Index usual = options.window + options.group;
    const Index rest = tail() + job.tokens - job.sinks - job.due * options.group;
    next_tail_ = {};
    if (job.learnt ? tail_.capacity() != usual : tail_.capacity() < rest) {
      next_tail_ = make_rows(job.learnt ? usual : std::max({usual, rest, 2 * tail_.capacity()}));
    }
  }

  /// Takes the rows of `job`, of which the first `packed` tokens of the tail and
  /// of the rows behind it are in pages by now.
  template <Element S>
  void append(const AppendJob<ExactStore> &job, TensorView<const S> k, TensorView<const S> v,
              Index packed) {
    sinks_.append(k, v, job.first_row, job.sinks);
    const Index from_tail = std::min(packed, tail());
    if (next_tail_.capacity() > 0) {
      tail_.move_to(std::exchange(next_tail_, {}), from_tail);
    } else {
      tail_.erase(0, from_tail);
    }
    const Index skipped = job.sinks + packed - from_tail;
    tail_.append(k, v, job.first_row + skipped, job.tokens - skipped);
  }

  void truncate(Index sinks, Index tail) {
    sinks_.truncate(sinks);
    tail_.truncate(tail);
  }

  /// Forgets tokens and turns the keys behind them.
  void shift(TokenRange sinks, TokenRange tail, const Turn *turn) {
    const auto shift_rows = [&](RowStore<T> &rows, TokenRange range) {
      rows.erase(range.first, range.last - range.first);
      if (turn != nullptr) rows.turn(range.first, *turn);
    };
    shift_rows(sinks_, sinks);
    shift_rows(tail_, tail);
  }

 private:
  RowStore<T> sinks_;
  RowStore<T> tail_;
  RowStore<T> next_tail_;  // with room, where the tail has to move
};

}  // namespace squat::cpu::inline SQUAT_API_NAMESPACE
