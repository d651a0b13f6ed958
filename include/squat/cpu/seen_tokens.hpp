#pragma once

// The tokens of a sequence without pages as queries of a call see them: those that the cache holds, and
// behind them the call's.

#include <algorithm>
#include <type_traits>

#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cpu/kernels/stored_row.hpp"
#include "squat/cpu/kernels/vector.hpp"
#include "squat/cpu/stored_rows.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// k, v: the call's rows of it, rounded to T when they are read. Kept: what rows of the tail are.
template <Element T, RowElement Kept, Element S>
struct SeenTokens {
  StoredRows<T> sinks;
  StoredRows<Kept> tail;
  TensorView<const S> k, v;

  /// Calls visit(keys, values, index, count) for the first `tokens` tokens of a head, at most `most` at
  /// a time: [count, head_dim] each, with `index` tokens before them. memory: [2, most, head_dim].
  template <class Visit>
  void for_each_block(Index head, Index tokens, Index most, float *memory, Visit &&visit) const {
    const Index d = k.head_dim;
    float *keys = memory, *values = memory + most * d;
    for (Index first = 0; first < tokens; first += most) {
      const Index count = std::min(most, tokens - first);
      for (Index i = 0; i < count; ++i) read(head, first + i, keys + i * d, values + i * d);
      visit(keys, values, first, count);
    }
  }

 private:
  void read(Index head, Index token, float *key, float *value) const {
    const Index d = k.head_dim, own = token - sinks.tokens - tail.tokens;
    if (own >= 0) {
      convert_row(k.row(own, head), d, key);
      convert_row(v.row(own, head), d, value);
      if constexpr (!std::is_same_v<S, T>) {
        round_row<T>(key, d);
        round_row<T>(value, d);
      }
      return;
    }
    const auto load = [&](const auto &rows, Index row) {
      load_row(rows.key(head, row), d, key);
      load_row(rows.value(head, row), d, value);
    };
    if (token < sinks.tokens) return load(sinks, token);
    load(tail, token - sinks.tokens);
  }
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
