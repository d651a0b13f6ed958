#pragma once

// How much each coding has seen, and when that is enough.

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "squat/cache/call.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/tail_rule.hpp"
#include "squat/coding/coding.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"

namespace squat::detail::inline SQUAT_API_NAMESPACE {

/// Codings by name, and the tokens they have learnt from.
class Learning {
 public:
  Learning(const Options &options, int key_bits)
      : tokens_to_learn_(tokens_wanted(options, key_bits)),
        together_(*options.allocation == Allocation::model && tokens_to_learn_ > 0),
        frozen_(options.learning == LearningMode::frozen),
        keep_statistics_(options.keep_statistics) {}

  /// A coding begins, or begins anew. Allocates; on failure nothing has changed.
  void add(Index coding) {
    const auto name = static_cast<std::size_t>(coding);
    if (name >= codings_.size()) codings_.resize(name + 1);
    codings_[name] = {.learns = tokens_to_learn_ > 0};
  }
  /// It is fixed, nothing learnt.
  void fix(Index coding) { codings_[static_cast<std::size_t>(coding)] = {}; }
  /// It goes.
  void remove(Index coding) { fix(coding); }

  /// Tokens a coding has to see before it packs; 0 where codings learn nothing.
  Index tokens_to_learn() const { return tokens_to_learn_; }
  /// Whether codings learn in this cache.
  bool learns_at_all() const { return tokens_to_learn_ > 0; }
  Index observed(Index coding) const { return state(coding).observed; }
  /// Whether it learns or has learnt.
  bool learns(Index coding) const { return state(coding).learns; }

  /// The same, as far as it counts for learning.
  Index observed_to_learn(Index coding) const { return std::min(observed(coding), tokens_to_learn_); }

  /// Throws Error where a coding from elsewhere cannot be as far as it says. learnt: it has learnt;
  /// ready: pages can be packed with it; seen: the tokens it has seen, while it is not.
  void check_adopted(bool learnt, bool ready, Index seen) const {
    const bool complete = ready || seen == tokens_to_learn_;
    if (seen > tokens_to_learn_ || learnt != (complete && tokens_to_learn_ > 0) ||
        (complete && !ready && !together_))
      throw_invalid("snapshot.coding.observed", seen, "as many as it takes to learn,", tokens_to_learn_);
  }

  /// A coding becomes one from elsewhere that check_adopted() let pass.
  void adopt(Index coding, bool ready, Index seen) {
    state(coding).observed = ready ? tokens_to_learn_ : seen;
  }
  /// It is again what it was.
  void restore(Index coding, Index seen) { state(coding).observed = seen; }

  /// Whether pages can be packed once `more` tokens of the coding are observed, if these are of text.
  /// Where all layers share bits, that is after the call in which the last coding of all is learnt.
  bool learnt(Index coding, Index more = 0) const {
    if (!together_ || !learns(coding)) return complete(coding, more);
    return std::all_of(codings_.begin(), codings_.end(), [&](const State &each) {
      return !each.learns || each.observed >= tokens_to_learn_;
    });
  }

  /// Whether a sequence whose coding is not learnt has waited long enough, with `tokens` tokens before a
  /// call and `more` in it. Where all layers learn together, they may yet do so behind this one.
  bool waited(Index tokens, Index more) const {
    return tokens + (together_ ? 0 : more) >= 2 * tokens_to_learn_;
  }
  /// Whether a sequence of so many tokens, which were no text, has had its chance to be learnt from.
  bool had_its_chance(Index tokens) const { return tokens >= tokens_to_learn_; }

  /// Whether tokens of a call, with their queries or without, join the statistics.
  bool observes(Index coding, bool queries) const {
    if (frozen_ || (tokens_to_learn_ > 0 && !learns(coding))) return false;
    return !complete(coding) || (queries && keep_statistics_);
  }

  /// Whether codings can do with what a prior says: where nothing else comes, and where all layers share
  /// bits, so that pages have their sizes from the beginning.
  bool learns_from_prior(const Options &options) const {
    if (!options.prior || tokens_to_learn_ == 0) return false;
    return frozen_ || (together_ && options.prior->knows_attention());
  }

  /// Learns a coding from the prior. Throws Error where that is of no text.
  template <class Operations, class Stream>
  void learn_from_prior(Operations &operations, Index coding, Stream stream) {
    if (!operations.learn(coding, stream))
      throw Error("squat: prior is of no text: few keys came again and again, or all of it is noise");
    state(coding).observed = tokens_to_learn_;
  }

  /// Adds what a call's tokens bring to the statistics that are still wanted,
  /// and learns from them when complete; then calls take_in(), which does all else, for they may be of
  /// no text. What all this allocates is not known before: where it throws, all codings of the call are
  /// what they were.
  template <Element S, class Operations, class Exact, class Stream, class TakeIn>
  void observe(Operations &operations, std::span<const SequenceCall<Exact>> calls, TensorView<const S> q,
               TensorView<const S> k, TensorView<const S> v, Stream stream, TakeIn &&take_in) {
    const auto learns = [&](const auto &call) {
      if (complete(call.coding)) return false;
      Index tokens = 0;
      for (const auto &other : calls)
        tokens += other.observed && other.coding == call.coding ? other.tokens : 0;
      return complete(call.coding, tokens);
    };
    const auto may_fail = [&](const auto &call) {
      return call.observed && (operations.observe_may_fail(call.tokens) || learns(call));
    };
    if (std::none_of(calls.begin(), calls.end(), may_fail)) {
      add<S>(operations, calls, q, k, v, stream);
      return take_in();
    }
    using Backup = typename Operations::Backup;
    struct Before {
      Index coding;
      Index observed;
      Backup backup;
    };
    std::vector<Before> before;
    before.reserve(calls.size());
    for (const auto &call : calls) {
      const Index coding = call.coding;
      const auto same = [&](const Before &other) { return other.coding == coding; };
      if (!call.observed || std::any_of(before.begin(), before.end(), same)) continue;
      before.push_back({coding, observed(coding), operations.back_up(coding, stream)});
    }
    try {
      add<S>(operations, calls, q, k, v, stream);
      take_in();
    } catch (...) {
      for (Before &each : before) {
        operations.restore(each.coding, std::move(each.backup));
        state(each.coding).observed = each.observed;
      }
      throw;
    }
  }

 private:
  template <Element S, class Operations, class Exact, class Stream>
  void add(Operations &operations, std::span<const SequenceCall<Exact>> calls, TensorView<const S> q,
           TensorView<const S> k, TensorView<const S> v, Stream stream) {
    for (const auto &call : calls) {
      if (!call.observed) continue;
      Index &seen = state(call.coding).observed, first = 0;
      const auto add_next = [&](Index count) {
        operations.template observe<S>(call, q, k, v, first, count, stream);
        seen += count;
        first += count;
      };
      while (first < call.tokens && seen < tokens_to_learn_) {
        add_next(std::min(tokens_to_learn_ - seen, call.tokens - first));
        if (seen < tokens_to_learn_ || operations.learn(call.coding, stream)) continue;
        seen = 0;
        if (had_its_chance(call.past + first)) break;
      }
      if (first < call.tokens && seen >= tokens_to_learn_ && q.tokens > 0 && keep_statistics_)
        add_next(call.tokens - first);
    }
  }

  /// Whether the coding has seen enough once `more` tokens are observed.
  bool complete(Index coding, Index more = 0) const {
    return !learns(coding) || observed(coding) + more >= tokens_to_learn_;
  }

  struct State {
    Index observed = 0;
    bool learns = false;
  };
  State &state(Index coding) { return codings_[static_cast<std::size_t>(coding)]; }
  const State &state(Index coding) const { return codings_[static_cast<std::size_t>(coding)]; }

  static Index tokens_wanted(const Options &options, int key_bits) {
    if (key_bits == 16 || !learns_from_prompt(*options.coding)) return 0;
    const TailRule<> rule{options.residual, options.page_tokens};
    const Index first_page = options.sinks + rule.full();
    return options.prior ? first_page : std::max<Index>(options.statistics_tokens, first_page);
  }

  Index tokens_to_learn_;
  bool together_;  // codings of all layers are learnt before any packs
  bool frozen_;
  bool keep_statistics_;
  std::vector<State> codings_;  // by name
};

}  // namespace squat::detail::inline SQUAT_API_NAMESPACE
