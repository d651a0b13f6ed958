#pragma once

// Sequences that are kept for requests that begin alike.

#include <algorithm>
#include <cstddef>
#include <list>
#include <span>
#include <utility>
#include <vector>

#include "engine.hpp"

namespace engine::serve {

/// How many tokens two sequences begin with alike.
inline std::size_t common_beginning(std::span<const int> a, std::span<const int> b) {
  const auto end = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first;
  return static_cast<std::size_t>(end - a.begin());
}

/// The first `tokens` tokens of a sequence.
struct Prefix {
  squat::SequenceId sequence{};
  std::size_t tokens = 0;
};

/// Sequences of requests that are done, those used last in front.
class PrefixStore {
 public:
  explicit PrefixStore(ModelCache &cache) : cache_(cache) {}
  ~PrefixStore() {
    while (evict()) {
    }
  }
  PrefixStore(const PrefixStore &) = delete;
  PrefixStore &operator=(const PrefixStore &) = delete;

  std::size_t size() const { return kept_.size(); }

  /// Keeps a sequence of `tokens`, and not those that it begins with.
  void keep(std::span<const int> tokens, squat::SequenceId sequence) {
    kept_.remove_if([&](const Kept &other) {
      const bool part = common_beginning(other.tokens, tokens) == other.tokens.size();
      if (part) cache_.remove_sequence(other.sequence);
      return part;
    });
    kept_.push_front({{tokens.begin(), tokens.end()}, sequence});
  }

  /// The longest beginning that a kept sequence has in common with `tokens`; it counts as used.
  Prefix find(std::span<const int> tokens) {
    Prefix longest;
    auto best = kept_.end();
    for (auto kept = kept_.begin(); kept != kept_.end(); ++kept) {
      const std::size_t common = common_beginning(kept->tokens, tokens);
      if (common <= longest.tokens) continue;
      longest = {kept->sequence, common};
      best = kept;
    }
    if (best != kept_.end()) kept_.splice(kept_.begin(), kept_, best);
    return longest;
  }

  /// Gives up the sequence that was used least recently. Returns whether there was one.
  bool evict() {
    if (kept_.empty()) return false;
    cache_.remove_sequence(kept_.back().sequence);
    kept_.pop_back();
    return true;
  }

 private:
  struct Kept {
    std::vector<int> tokens;
    squat::SequenceId sequence;
  };

  ModelCache &cache_;
  std::list<Kept> kept_;
};

}  // namespace engine::serve
