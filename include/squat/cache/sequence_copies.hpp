#pragma once

// Sequences that begin as the first tokens of others.

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "squat/cache/call.hpp"
#include "squat/cache/sequence.hpp"
#include "squat/core/config.hpp"

namespace squat::detail {

/// The copies that one call makes. Pages and codings are named and not copied: who takes a copy into use
/// retains them.
template <class Exact>
class SequenceCopies {
 public:
  using Sequence = SequenceState<Exact>;

  static constexpr Index all_tokens = std::numeric_limits<Index>::max();

  /// A sequence with the first `tokens` tokens of another in every layer, its exact rows left to make().
  std::unique_ptr<Sequence> add(const Sequence &from, Index tokens) {
    auto copy = std::make_unique<Sequence>();
    copy->layers.resize(from.layers.size());
    for (std::size_t i = 0; i < from.layers.size(); ++i) {
      const LayerTokens<Exact> &layer = from.layers[i];
      LayerTokens<Exact> &copied = copy->layers[i];
      const Index kept_tokens = std::min(tokens, layer.length());
      const FirstTokens kept = layer.first(kept_tokens);
      copied.name_tokens(layer, kept, kept_tokens);
      copies_.push_back({&layer.exact, &copied.exact, kept.sinks, kept.tail, copied.page_views});
    }
    return copy;
  }

  /// Copies the exact rows of all that were added. Allocates before it copies anything.
  template <class Operations, class Stream>
  void make(Operations &operations, Stream stream) {
    operations.reserve_copies(copies_);
    operations.copy(copies_, stream);
  }

 private:
  std::vector<ExactCopy<Exact>> copies_;
};

}  // namespace squat::detail
