#pragma once

// A sequence's rows in a call, and what the cache knows of the layer they belong to: all that a backend
// is told.

#include <cstddef>
#include <span>

#include "squat/core/config.hpp"
#include "squat/core/tensor.hpp"

namespace squat {

/// Where attention puts what it finds out.
template <class Scalar>
struct AttentionOutput {
  TensorView<Scalar> rows{};  ///< [tokens, query_heads, head_dim]; of no tokens: no attention
  TensorView<float>
      lse{};  ///< [tokens, query_heads, 1], see AttentionTensors; of no tokens: not asked for

  AttentionOutput() = default;
  AttentionOutput(TensorView<Scalar> out, TensorView<float> sums = {}) : rows(out), lse(sums) {}
};

/// A page of packed tokens. Its keys are coded in the rotary frame of a position
/// `base`: as if that were position 0.
struct PageView {
  std::byte *data = nullptr;
  Index first = 0;      ///< the first of its tokens that counts
  Index tokens = 0;     ///< how many count
  Index base = 0;       ///< position that its keys are turned back by
  Index row = 0;        ///< row of its tile that its first token (of all) stands in
  Index before = 0;     ///< tokens of the sequence before those that count, sinks included
  Index tile_page = 0;  ///< pages of the same base right before it
};

/// Tokens of a sequence before its tail: sinks and those of its pages.
inline Index tail_begin(Index sinks, std::span<const PageView> pages) {
  return pages.empty() ? sinks : pages.back().before + pages.back().tokens;
}

/// Tokens [first, last).
struct TokenRange {
  Index first = 0;
  Index last = 0;

  bool operator==(const TokenRange &) const = default;
};

/// The first sinks and tail tokens of a store, to be copied into an empty one: of a sequence that shares
/// the pages between them.
template <class Exact>
struct ExactCopy {
  const Exact *from = nullptr;
  Exact *to = nullptr;
  Index sinks = 0;
  Index tail = 0;
  std::span<const PageView> pages{};  ///< of the copy: the first of those that `from` stands beside, the
                                      ///< last of them perhaps with fewer tokens
};

/// A token of a draft (KVCache::draft()): its path is itself, its parent, and so on to the token behind
/// those of the cache.
struct DraftToken {
  Index parent = -1;  ///< among the rows of its sequence; -1: none, it stands right behind the cache's
  Index depth = 1;    ///< tokens of its path
};

/// `tokens` rows of the call's tensors from `first_row` on, which belong to one sequence. Exact: the
/// backend's store of its sinks and tail in the layer.
template <class Exact>
struct SequenceCall {
  Exact *exact = nullptr;
  std::span<const PageView> pages{};  ///< that are there before the call
  Index coding = 0;                   ///< names what was learnt, see BackendOperations
  Index first_row = 0;
  Index tokens = 0;
  Index past = 0;      ///< tokens of the sequence before the first row
  Index position = 0;  ///< rotary position of the first row
  bool causal = true;  ///< row i sees past + i + 1 tokens; else all rows see `past` of them
  std::span<const DraftToken> draft{};  ///< of a draft's rows, which see `past` tokens and their paths

  /// How many tokens row `row` sees at most, its path aside.
  Index seen(Index row) const { return causal && draft.empty() ? past + row + 1 : past; }
  /// Where its own token stands: so many tokens are before it.
  Index place(Index row) const {
    return draft.empty() ? seen(row) - 1 : past + draft[static_cast<std::size_t>(row)].depth - 1;
  }

  // Of calls that append.
  Index sinks = 0;                        ///< how many of the rows become sinks
  Index due = 0;                          ///< pages that become due
  std::span<const PageView> due_pages{};  ///< where they will be; empty until memory is reserved
  bool learnt = false;                    ///< pages can be packed once the call's tokens are observed
  bool observed = false;                  ///< some of the tokens join the coding's statistics

  PageView ready_page{};  ///< acquired ahead, see replay.hpp; its data is null if there is none
};

}  // namespace squat
