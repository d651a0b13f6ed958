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
      : tokens_to_learn_(tokens_to_learn(options, key_bits)),
        together_(*options.allocation == Allocation::model && tokens_to_learn_ > 0),
        keep_statistics_(options.keep_statistics) {}

  /// A coding begins anew.
  void add(Index coding) {
    if (static_cast<std::size_t>(coding) == observed_.size()) observed_.push_back(0);
    observed(coding) = 0;
  }

  Index observed(Index coding) const { return observed_[static_cast<std::size_t>(coding)]; }

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
    observed(coding) = ready ? tokens_to_learn_ : seen;
  }
  /// It is again what it was.
  void restore(Index coding, Index seen) { observed(coding) = seen; }

  /// Whether pages can be packed once `more` tokens of the coding are observed. Where all layers share
  /// bits, that is after the call in which the last coding of all is learnt.
  bool learnt(Index coding, Index more = 0) const {
    if (!together_) return complete(coding, more);
    return std::all_of(observed_.begin(), observed_.end(),
                       [&](Index seen) { return seen >= tokens_to_learn_; });
  }

  /// Whether tokens of a call, with their queries or without, join the statistics.
  bool observes(Index coding, bool queries) const {
    return !complete(coding) || (tokens_to_learn_ > 0 && queries && keep_statistics_);
  }

  /// Whether codings can do with what a prior says: where all layers share bits by then, pages have
  /// their sizes from the beginning.
  bool learns_from_prior(const Options &options) const {
    return together_ && options.prior && options.prior->knows_attention();
  }

  /// Learns all codings from the prior.
  template <class Operations, class Stream>
  void learn_from_prior(Operations &operations, Stream stream) {
    for (std::size_t coding = 0; coding < observed_.size(); ++coding) {
      operations.learn(static_cast<Index>(coding), stream);
      observed_[coding] = tokens_to_learn_;
    }
  }

  /// Adds what a call's tokens bring to the statistics that are still wanted,
  /// and learns from them when complete. What learning allocates is not known before: where it
  /// throws, all codings of the call are what they were.
  template <Element S, class Operations, class Exact, class Stream>
  void observe(Operations &operations, std::span<const SequenceCall<Exact>> calls, TensorView<const S> q,
               TensorView<const S> k, TensorView<const S> v, Stream stream) {
    const auto learns = [&](const auto &call) {
      if (complete(call.coding)) return false;
      Index tokens = 0;
      for (const auto &other : calls) tokens += other.coding == call.coding ? other.tokens : 0;
      return complete(call.coding, tokens);
    };
    if (std::none_of(calls.begin(), calls.end(), learns))
      return add<S>(operations, calls, q, k, v, stream);
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
    } catch (...) {
      for (Before &each : before) {
        operations.restore(each.coding, std::move(each.backup));
        observed(each.coding) = each.observed;
      }
      throw;
    }
  }

 private:
  template <Element S, class Operations, class Exact, class Stream>
  void add(Operations &operations, std::span<const SequenceCall<Exact>> calls, TensorView<const S> q,
           TensorView<const S> k, TensorView<const S> v, Stream stream) {
    for (const auto &call : calls) {
      Index &seen = observed(call.coding);
      const auto add = [&](Index first, Index count) {
        operations.template observe<S>(call, q, k, v, first, count, stream);
        seen += count;
      };
      const Index wanted = std::clamp<Index>(tokens_to_learn_ - seen, 0, call.tokens);
      if (wanted > 0) {
        add(0, wanted);
        if (seen == tokens_to_learn_) operations.learn(call.coding, stream);
      }
      const Index more = call.tokens - wanted;
      if (more > 0 && q.tokens > 0 && keep_statistics_) add(wanted, more);
    }
  }

  /// Whether the coding has seen enough once `more` tokens are observed.
  bool complete(Index coding, Index more = 0) const {
    return observed(coding) + more >= tokens_to_learn_;
  }

  Index &observed(Index coding) { return observed_[static_cast<std::size_t>(coding)]; }

  /// Tokens a coding has to see before it packs.
  static Index tokens_to_learn(const Options &options, int key_bits) {
    if (key_bits == 16 || !learns_from_prompt(*options.coding)) return 0;
    const TailRule<> rule{options.residual, options.page_tokens};
    const Index first_page = options.sinks + rule.full();
    return options.prior ? first_page : std::max<Index>(options.statistics_tokens, first_page);
  }

  Index tokens_to_learn_;
  bool together_;  // codings of all layers are learnt before any packs
  bool keep_statistics_;
  std::vector<Index> observed_;
};

}  // namespace squat::detail::inline SQUAT_API_NAMESPACE
