#pragma once

// What the queries of one sequence see in one layer: the cache's description of
// itself to a backend.

#include <cstddef>
#include <span>

#include "squat/config.hpp"

namespace squat {

/// Rows the cache keeps exact, `[kv_heads, capacity, head_dim]`, of which the
/// first `tokens` are filled.
template <class T>
struct ExactRows {
  const T *keys = nullptr;
  const T *values = nullptr;
  Index tokens = 0;
  Index capacity = 0;

  const T *key(Index head, Index token, Index head_dim) const {
    return keys + (head * capacity + token) * head_dim;
  }
  const T *value(Index head, Index token, Index head_dim) const {
    return values + (head * capacity + token) * head_dim;
  }
};

/// Tokens [first, last).
struct TokenRange {
  Index first = 0;
  Index last = 0;
};

/// A page of packed tokens. Its keys are coded in the rotary frame of a position
/// `base`: as if that were position 0. Pages of one tile share a base.
struct PageView {
  std::byte *data = nullptr;
  Index first = 0;   ///< the first of its tokens that counts
  Index tokens = 0;  ///< how many count
  Index base = 0;    ///< position that its keys are turned back by
  Index row = 0;     ///< row of its tile that its first token (of all) stands in
};

inline Index paged_tokens(std::span<const PageView> pages) {
  Index sum = 0;
  for (const PageView &page : pages) sum += page.tokens;
  return sum;
}

/// The cached tokens of one sequence and layer, in their order: sinks, pages,
/// tail.
template <class T>
struct Context {
  ExactRows<T> sinks;
  std::span<const PageView> pages;
  ExactRows<T> tail;
};

template <class T>
Context<T> make_context(const ExactRows<T> &sinks, std::span<const PageView> pages,
                        const ExactRows<T> &tail) {
  return {sinks, pages, tail};
}

/// One sequence's part of a batched call: `tokens` rows of the call's tensors
/// from `first_row` on, with `past`, `past + 1`, ... tokens before them.
/// Context: what the backend sees of the cached tokens.
template <class Context>
struct SequenceJob {
  Context context;
  Index coding = 0;  ///< names what was learnt, see BackendOperations
  Index first_row = 0;
  Index tokens = 0;
  Index past = 0;
};

/// One sequence's tokens in one layer, as the cache counts them. Exact: the
/// backend's store of its sinks and tail.
template <class Exact>
struct LayerView {
  Exact *exact = nullptr;
  std::span<const PageView> pages{};
  PageView next{};  ///< laid ready behind them; its data is null if there is none
  Index coding = 0;
  Index position = 0;  ///< rotary position of the next token
};

/// What becomes of one sequence's part of a batched call that appends.
template <class Exact>
struct AppendJob {
  LayerView<Exact> layer;  ///< its position is that behind the call; settle() finds `due` pages more
  Index first_row = 0;
  Index tokens = 0;
  Index sinks = 0;        ///< how many of them become sinks
  Index due = 0;          ///< pages that become due
  bool learnt = false;    ///< the coding is there once the call's tokens are observed
  bool observed = false;  ///< some of the tokens join the coding's statistics
};

}  // namespace squat
