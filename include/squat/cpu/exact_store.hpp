#pragma once

// The exact tokens of one sequence and layer: its sinks and its tail.

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include "squat/cache/call.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/tail_rule.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cpu/exact_rows.hpp"
#include "squat/cpu/row_store.hpp"

namespace squat::cpu::inline SQUAT_API_NAMESPACE {

template <class T>
class ExactStore {
 public:
  Index sinks() const { return sinks_.tokens(); }
  Index tail() const { return tail_.tokens(); }
  std::size_t bytes() const { return sinks_.bytes() + tail_.bytes(); }

  ExactRows<T> sink_rows() const { return sinks_.view(); }
  ExactRows<T> tail_rows() const { return tail_.view(); }

  /// Makes the room that `call` needs. Nothing but memory changes.
  void reserve(const Options &options, const SequenceCall<ExactStore> &call) {
    const auto make_rows = [&](Index capacity) {
      return RowStore<T>(options.kv_heads, options.head_dim, capacity);
    };
    next_sinks_ = {};
    next_tail_ = {};
    if (sinks_.capacity() < sinks() + call.sinks) next_sinks_ = make_rows(sinks() + call.sinks);
    // A short sequence takes hardly more rows than it has tokens. Room grows by a quarter, which moves
    // a token some four times, up to what a tail holds when a page is due.
    const Index full = TailRule<>{options.residual, options.page_tokens}.full();
    const Index rest = tail() + call.tokens - call.sinks - call.due * options.page_tokens;
    const Index room = tail_.capacity();
    const Index grown = std::max(rest, room + room / 4);
    const bool too_large = call.learnt && room > full;
    if (room < rest || too_large) {
      next_tail_ = make_rows(call.learnt ? std::min(std::max(grown, rest), full) : grown);
    }
  }

  /// Takes the rows of `call`, of which the first `packed` tokens of the tail and
  /// of the rows behind it are in pages by now.
  template <Element S>
  void append(const SequenceCall<ExactStore> &call, TensorView<const S> k, TensorView<const S> v,
              Index packed) {
    if (next_sinks_.capacity() > 0) sinks_.move_to(std::exchange(next_sinks_, {}), 0);
    sinks_.append(k, v, call.first_row, call.sinks);
    const Index from_tail = std::min(packed, tail());
    if (next_tail_.capacity() > 0) {
      tail_.move_to(std::exchange(next_tail_, {}), from_tail);
    } else {
      tail_.erase(0, from_tail);
    }
    const Index skipped = call.sinks + packed - from_tail;
    tail_.append(k, v, call.first_row + skipped, call.tokens - skipped);
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
  RowStore<T> next_sinks_, next_tail_;  // with room, where they have to move
};

}  // namespace squat::cpu::inline SQUAT_API_NAMESPACE
