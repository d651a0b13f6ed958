#pragma once

// How all ranks of a split context come to code with what part 0 has learnt.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "squat/core/config.hpp"

namespace squat::detail {

/// Codings learn from the first tokens, which are part 0's; nobody else packs before all have them.
template <class Cache, class Transport>
class SharedCodings {
 public:
  SharedCodings(Cache &cache, Transport &transport, int parts)
      : cache_(&cache),
        transport_(&transport),
        shared_(learnt()),
        alone_(parts == 1),
        to_learn_(shared_ ? 0 : cache.tokens_to_learn()),
        seen_(static_cast<std::size_t>(cache.options().layers)) {}

  /// Tokens that codings are yet to be learnt from.
  Index tokens_to_learn() const { return to_learn_; }

  /// Part 0 has had so many more.
  void count(int layer, Index tokens) { seen_[static_cast<std::size_t>(layer)] += tokens; }
  /// Part 0 may have learnt elsewhere, which share() asks it.
  void count_all() { std::fill(seen_.begin(), seen_.end(), to_learn_); }

  /// Whether all ranks have them, or there is one alone.
  bool shared() const { return shared_ || alone_; }
  /// Whether part 0 has had what it learns from, in all layers, as every rank knows.
  bool seen_enough() const {
    return shared() ||
           std::all_of(seen_.begin(), seen_.end(), [&](Index seen) { return seen >= to_learn_; });
  }

  /// Gives all ranks the codings of part 0 once these have learnt: later where its tokens were no text.
  template <class Stream>
  void share(Stream stream) {
    if (shared() || !seen_enough()) return;
    const bool first = transport_->rank() == 0;
    std::vector<std::byte> codings;
    if (first && learnt()) cache_->save_codings(codings, {}, stream);
    std::uint64_t size = codings.size();
    transport_->broadcast(std::as_writable_bytes(std::span(&size, 1)));
    if (size == 0) return;
    codings.resize(static_cast<std::size_t>(size));
    transport_->broadcast(codings);
    if (!first) cache_->load_codings(codings, {}, stream);
    shared_ = true;
  }

 private:
  bool learnt() const {
    bool learnt = true;
    for (int layer = 0; layer < cache_->options().layers; ++layer)
      learnt = cache_->learnt(layer) && learnt;
    return learnt;
  }

  Cache *cache_;
  Transport *transport_;
  bool shared_;
  bool alone_;
  Index to_learn_;
  std::vector<Index> seen_;  // tokens to learn from that part 0 has had, in each layer
};

}  // namespace squat::detail
