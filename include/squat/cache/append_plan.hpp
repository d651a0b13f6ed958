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

  /// Plans `tokens` rows of the call from `first_row` on for `layer`, whose pages can be packed with
  /// `coding` by then (`learnt`) or not: which of them become sinks, and how many pages become due.
  /// sinks: of a sequence. observed: whether tokens of it join the coding's statistics.
  void add(Layer &layer, Index first_row, Index tokens, Index coding, bool learnt, bool observed,
           Index sinks, const TailRule<> &rule) {
    Call call = layer.call(first_row, tokens);
    call.coding = coding;
    call.sinks = layer.sinks_to_fill(tokens, sinks);
    call.learnt = learnt;
    call.observed = observed;
    if (learnt) call.due = layer.due_pages(tokens, sinks, rule);
    layers_.push_back(&layer);
    calls_.push_back(call);
  }

  /// Calls visit(coding, pages) for the pages that are due and were not acquired ahead.
  template <class Visit>
  void for_each_new_page(Visit &&visit) const {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const Index due = calls_[i].due;
      visit(calls_[i].coding,
            static_cast<std::size_t>(due > 0 && layers_[i]->ready_page ? due - 1 : due));
    }
  }

  std::span<Layer *const> layers() const { return layers_; }
  std::span<Call> calls() { return calls_; }
  std::span<const Call> calls() const { return calls_; }

 private:
  std::vector<Layer *> layers_;
  std::vector<Call> calls_;
};

}  // namespace squat::detail
