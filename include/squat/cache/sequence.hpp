#pragma once

// What the cache knows of one sequence.

#include <algorithm>
#include <compare>
#include <cstdint>
#include <vector>

#include "squat/attention/context.hpp"
#include "squat/cache/page_pool.hpp"
#include "squat/config.hpp"

namespace squat {

/// Names a sequence of a cache. Never used again after remove_sequence().
struct SequenceId {
  std::uint64_t value = 0;
  auto operator<=>(const SequenceId &) const = default;
};

/// One sequence's share of a batched call: the next `tokens` rows of the call's
/// tensors.
struct SequenceTokens {
  SequenceId sequence;
  Index tokens = 0;
};

/// One sequence's tokens in one layer, in their order: sinks, pages, tail.
template <class Rows>
struct LayerTokens {
  Rows sinks;
  Rows tail;
  std::vector<PageIndex> pages;
  std::vector<PageView> page_views;  // of the same pages

  Index paged_tokens() const {
    Index sum = 0;
    for (const PageView &page : page_views) sum += page.tokens;
    return sum;
  }
  Index length() const { return sinks.tokens() + paged_tokens() + tail.tokens(); }
  auto context() const { return make_context(sinks.view(), page_views, tail.view()); }
};

template <class Rows>
struct SequenceState {
  std::vector<LayerTokens<Rows>> layers;
  std::uint64_t last_call = 0;  // the batched call that named it last
};

}  // namespace squat
