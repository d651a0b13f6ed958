#pragma once

// What a call that appends will do to each of its sequences, decided before
// anything changes.

#include <cstddef>
#include <span>
#include <vector>

#include "squat/cache/call.hpp"
#include "squat/cache/sequence.hpp"
#include "squat/cache/tail_rule.hpp"
#include "squat/core/config.hpp"

namespace squat::detail {

template <class Exact>
class AppendPlan {
 public:
  using Layer = LayerTokens<Exact>;
  using Call = SequenceCall<Exact>;

  void clear() {
    layers_.clear();
    calls_.clear();
  }

  /// Plans `tokens` rows of the call from `first_row` on for `layer`, whose pages can be packed by
  /// then (`learnt`) or not: which of them become sinks, and how many pages become due. sinks: of a
  /// sequence. observed: whether tokens of it join the coding's statistics.
  void add(Layer &layer, Index first_row, Index tokens, bool learnt, bool observed, Index sinks,
           const TailRule<> &rule) {
    Call call = layer.call(first_row, tokens);
    call.sinks = layer.sinks_to_fill(tokens, sinks);
    call.learnt = learnt;
    call.observed = observed;
    if (learnt) call.due = rule.due_pages(layer.exact.tail() + tokens - call.sinks);
    layers_.push_back(&layer);
    calls_.push_back(call);
  }

  /// Pages due that were not acquired ahead.
  Index new_pages() const {
    Index sum = 0;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      sum += calls_[i].due - (calls_[i].due > 0 && layers_[i]->ready_page ? 1 : 0);
    }
    return sum;
  }

  std::span<Layer *const> layers() const { return layers_; }
  std::span<Call> calls() { return calls_; }
  std::span<const Call> calls() const { return calls_; }

 private:
  std::vector<Layer *> layers_;
  std::vector<Call> calls_;
};

}  // namespace squat::detail
