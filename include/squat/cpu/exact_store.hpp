#pragma once

// The exact tokens of one sequence and layer: its sinks and its tail.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "squat/cache/call.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/tail_rule.hpp"
#include "squat/coding/coding.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cpu/row_store.hpp"
#include "squat/cpu/stored_rows.hpp"

namespace squat::cpu::inline SQUAT_API_NAMESPACE {

template <class T>
class ExactStore {
 public:
  Index sinks() const { return sinks_.tokens(); }
  Index tail() const {
    return with_tail(*this, [](const auto &tail, const auto &) { return tail.tokens(); });
  }
  std::size_t bytes() const {
    return sinks_.bytes() +
           with_tail(*this, [](const auto &tail, const auto &) { return tail.bytes(); });
  }

  StoredRows<T> sink_rows() const { return sinks_.view(); }

  /// Calls visit() with the tail, StoredRows of T or of bytes.
  template <class Visit>
  decltype(auto) visit_tail(Visit &&visit) const {
    return with_tail(
        *this, [&](const auto &tail, const auto &) -> decltype(auto) { return visit(tail.view()); });
  }

  /// Makes the room that `call` needs. Nothing but memory changes.
  void reserve(const Options &options, const SequenceCall<ExactStore> &call) {
    next_sinks_ = {};
    if (sinks_.capacity() < sinks() + call.sinks) {
      next_sinks_ = RowStore<T>(options.kv_heads, options.head_dim, sinks() + call.sinks);
    }
    bytes_ = options.tail == TailCoding::int8;
    // A short sequence takes hardly more rows than it has tokens. Room grows by a quarter, which moves
    // a token some four times, up to what a tail holds when a page is due.
    const Index full = TailRule<>{options.residual, options.page_tokens}.full();
    const Index rest = tail() + call.tokens - call.sinks - call.due * options.page_tokens;
    with_tail(*this, [&]<class Rows>(const Rows &tail, Rows &next) {
      const Index room = tail.capacity();
      const Index grown = std::max(rest, room + room / 4);
      const bool too_large = call.learnt && room > full;
      next = {};
      if (room < rest || too_large) {
        next = Rows(options.kv_heads, options.head_dim,
                    call.learnt ? std::min(std::max(grown, rest), full) : grown);
      }
    });
  }

  /// Takes the rows of `call`, of which the first `packed` tokens of the tail and
  /// of the rows behind it are in pages by now.
  template <Element S>
  void append(const SequenceCall<ExactStore> &call, TensorView<const S> k, TensorView<const S> v,
              Index packed) {
    if (next_sinks_.capacity() > 0) sinks_.move_to(std::exchange(next_sinks_, {}), 0);
    sinks_.append(k, v, call.first_row, call.sinks);
    with_tail(*this, [&](auto &tail, auto &next) {
      const Index from_tail = std::min(packed, tail.tokens());
      if (next.capacity() > 0) {
        tail.move_to(std::exchange(next, {}), from_tail);
      } else {
        tail.erase(0, from_tail);
      }
      const Index skipped = call.sinks + packed - from_tail;
      tail.append(k, v, call.first_row + skipped, call.tokens - skipped);
    });
  }

  /// Writes `count` rows from `first` on, of the tail or of the sinks, see RowStore::write().
  void write(bool of_tail, Index first, Index count, std::byte *to) const {
    if (!of_tail) return sinks_.write(first, count, to);
    with_tail(*this, [&](const auto &tail, const auto &) { tail.write(first, count, to); });
  }

  /// Adds such rows; of a store that will hold `expected` of them. Allocates no more than twice what is
  /// there; on failure nothing has changed.
  void read(const Options &options, bool of_tail, Index count, Index expected, const std::byte *from) {
    const auto add = [&]<class Rows>(Rows &rows) {
      const Index wanted = rows.tokens() + count;
      if (rows.capacity() < wanted) {
        const Index room = std::max(wanted, std::min(expected, 2 * rows.capacity()));
        Rows larger(options.kv_heads, options.head_dim, room);
        if (rows.capacity() > 0) {
          rows.move_to(std::move(larger), 0);
        } else {
          rows = std::move(larger);
        }
      }
      rows.read(count, from);
    };
    bytes_ = options.tail == TailCoding::int8;
    if (!of_tail) return add(sinks_);
    with_tail(*this, [&](auto &tail, auto &) { add(tail); });
  }

  void truncate(Index sinks, Index tail) {
    sinks_.truncate(sinks);
    with_tail(*this, [&](auto &rows, auto &) { rows.truncate(tail); });
  }

  void swap_tokens(ExactStore &other) { std::swap(*this, other); }

  /// Makes the room for the first tokens of another, being empty.
  void reserve_copy(const ExactStore &from, Index sinks, Index tail) {
    sinks_ = from.sinks_.room_for(sinks);
    bytes_ = from.bytes_;
    tail_ = from.tail_.room_for(bytes_ ? 0 : tail);
    byte_tail_ = from.byte_tail_.room_for(bytes_ ? tail : 0);
  }

  /// Takes them.
  void copy(const ExactStore &from, Index sinks, Index tail) {
    sinks_.copy(from.sinks_, sinks);
    tail_.copy(from.tail_, bytes_ ? 0 : tail);
    byte_tail_.copy(from.byte_tail_, bytes_ ? tail : 0);
  }

  /// Forgets tokens and turns the keys behind them.
  void shift(TokenRange sinks, TokenRange tail, const Turn *turn) {
    const auto shift_rows = [&](auto &rows, TokenRange range) {
      rows.erase(range.first, range.last - range.first);
      if (turn != nullptr) rows.turn(range.first, *turn);
    };
    shift_rows(sinks_, sinks);
    with_tail(*this, [&](auto &rows, auto &) { shift_rows(rows, tail); });
  }

 private:
  /// Calls visit() with the tail and what takes its place, as they are kept.
  template <class Self, class Visit>
  static decltype(auto) with_tail(Self &self, Visit &&visit) {
    return self.bytes_ ? visit(self.byte_tail_, self.next_byte_tail_)
                       : visit(self.tail_, self.next_tail_);
  }

  bool bytes_ = false;  // the tail is kept in bytes
  RowStore<T> sinks_, tail_;
  RowStore<std::int8_t> byte_tail_;
  RowStore<T> next_sinks_, next_tail_;  // with room, where they have to move
  RowStore<std::int8_t> next_byte_tail_;
};

}  // namespace squat::cpu::inline SQUAT_API_NAMESPACE
