#pragma once

// Which sequence takes whose tokens, and which of them need not be copied.

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "squat/cache/sequence.hpp"

namespace squat::detail {

/// The sequences of a KVCache::reorder() that take the tokens of others. One whose tokens are taken by
/// others and that takes those of a third gives its own away: the first that wants them has them without
/// a copy.
template <class Exact>
class ReorderPlan {
 public:
  using Sequence = SequenceState<Exact>;

  struct Heir {
    Sequence *sequence;
    Sequence *parent;
    bool moves = false;                  // takes what the parent gives away
    std::unique_ptr<Sequence> tokens{};  // on their way: what it takes, and then what it held
  };

  void add(Sequence &sequence, Sequence &parent) {
    if (&sequence != &parent) heirs_.push_back({&sequence, &parent});
  }

  /// Decides who moves, and makes what moved tokens are put into; copy(parent) gives a copy of a
  /// sequence. Nothing of the cache changes.
  template <class Copy>
  void make(Copy &&copy) {
    for (Heir &heir : heirs_) {
      heir.moves = gives_away(*heir.parent);
      if (!heir.moves) {
        heir.tokens = copy(*heir.parent);
        continue;
      }
      heir.tokens = std::make_unique<Sequence>();
      heir.tokens->layers.resize(heir.parent->layers.size());
    }
  }

  /// Gives every heir its tokens. Heir::tokens is then what it held and nobody took.
  void exchange() {
    for (Heir &heir : heirs_) {
      if (heir.moves) swap_tokens(*heir.tokens, *heir.parent);
    }
    for (Heir &heir : heirs_) swap_tokens(*heir.tokens, *heir.sequence);
  }

  std::span<Heir> heirs() { return heirs_; }

 private:
  /// Whether a sequence takes other tokens in this call, and nobody moves its own yet.
  bool gives_away(const Sequence &sequence) const {
    const auto takes = [&](const Heir &heir) { return heir.sequence == &sequence; };
    const auto moved = [&](const Heir &heir) { return heir.moves && heir.parent == &sequence; };
    return std::any_of(heirs_.begin(), heirs_.end(), takes) &&
           std::none_of(heirs_.begin(), heirs_.end(), moved);
  }

  static void swap_tokens(Sequence &a, Sequence &b) {
    for (std::size_t layer = 0; layer < a.layers.size(); ++layer) {
      a.layers[layer].swap_tokens(b.layers[layer]);
    }
  }

  std::vector<Heir> heirs_;
};

}  // namespace squat::detail
