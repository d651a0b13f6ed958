#pragma once

// What a call that appends will do to each of its sequences, decided before
// anything changes.

#include <span>
#include <utility>
#include <vector>

#include "squat/cache/sequence.hpp"
#include "squat/config.hpp"
#include "squat/options.hpp"

namespace squat {

template <class Operations>
class AppendPlan {
 public:
  using Layer = LayerTokens<typename Operations::Exact>;
  using Append = typename Operations::Append;
  using Job = typename Operations::Job;

  void clear() {
    layers_.clear();
    appends_.clear();
    jobs_.clear();
  }

  /// Plans `tokens` rows of the call from `first_row` on for `layer`, whose coding is there by then
  /// (`learnt`) or not: which of them become sinks, and how many pages become due.
  /// observed: whether tokens of it join the coding's statistics.
  void add(Layer &layer, Index first_row, Index tokens, bool learnt, bool observed,
           const Options &options) {
    Append append{.layer = {.exact = &layer.exact,
                            .coding = layer.coding,
                            .position = layer.next_position + tokens},
                  .first_row = first_row,
                  .tokens = tokens,
                  .sinks = layer.sinks_to_fill(tokens, options.sinks),
                  .learnt = learnt,
                  .observed = observed};
    const Index exact = layer.exact.tail() + tokens - append.sinks;
    if (learnt && exact >= options.residual + options.page_tokens) {
      append.due = (exact - options.residual) / options.page_tokens;
    }
    layers_.push_back(&layer);
    appends_.push_back(append);
  }

  /// Pages due that are not laid ready yet.
  Index new_pages() const {
    Index sum = 0;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      sum += appends_[i].due - (appends_[i].due > 0 && layers_[i]->next_page ? 1 : 0);
    }
    return sum;
  }

  /// Describes the sequences as they are before the call, once all room is made.
  void make_jobs() {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const Append &append = appends_[i];
      jobs_.push_back({layers_[i]->context(), append.layer.coding, append.first_row, append.tokens,
                       layers_[i]->length()});
    }
  }

  std::span<Layer *const> layers() const { return layers_; }
  std::span<Append> appends() { return appends_; }
  std::span<const Append> appends() const { return appends_; }
  std::span<const Job> jobs() const { return jobs_; }

 private:
  std::vector<Layer *> layers_;
  std::vector<Append> appends_;
  std::vector<Job> jobs_;
};

}  // namespace squat
