#pragma once

// How much each coding has seen, and when that is enough.

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "squat/cache/append_plan.hpp"
#include "squat/config.hpp"
#include "squat/instruction_set.hpp"
#include "squat/options.hpp"
#include "squat/quantize/coding.hpp"
#include "squat/tensor.hpp"

namespace squat::inline SQUAT_API_NAMESPACE {

/// Codings by name, and the tokens they have learnt from.
class Learning {
 public:
  Learning(const Options &options, int key_bits)
      : tokens_to_learn_(tokens_to_learn(options, key_bits)),
        keep_statistics_(options.keep_statistics) {}

  /// A coding begins anew.
  void add(Index coding) {
    if (static_cast<std::size_t>(coding) == observed_.size()) observed_.push_back(0);
    observed(coding) = 0;
  }

  Index observed(Index coding) const { return observed_[static_cast<std::size_t>(coding)]; }

  /// Whether the coding will be there once `more` tokens are observed.
  bool learnt(Index coding, Index more = 0) const { return observed(coding) + more >= tokens_to_learn_; }

  /// Whether tokens of a call, with their queries or without, join the statistics.
  bool observes(Index coding, bool queries) const {
    return !learnt(coding) || (tokens_to_learn_ > 0 && queries && keep_statistics_);
  }

  /// Adds what a call's tokens bring to the statistics that are still wanted,
  /// and learns from them when complete. What learning allocates is not known before: where it
  /// throws, all codings of the call are what they were.
  template <Element S, class Operations, class Stream>
  void observe(Operations &operations, const AppendPlan<Operations> &plan, TensorView<const S> q,
               TensorView<const S> k, Stream stream) {
    const auto learns = [&](const auto &job) { return !learnt(job.layer.coding) && job.learnt; };
    const auto appends = plan.appends();
    if (std::none_of(appends.begin(), appends.end(), learns)) {
      return add<S>(operations, plan, q, k, stream);
    }
    using Backup = typename Operations::Backup;
    struct Before {
      Index coding;
      Index observed;
      Backup backup;
    };
    std::vector<Before> before;
    before.reserve(appends.size());
    for (const auto &append : appends) {
      const Index coding = append.layer.coding;
      const auto same = [&](const Before &other) { return other.coding == coding; };
      if (!append.observed || std::any_of(before.begin(), before.end(), same)) continue;
      before.push_back({coding, observed(coding), operations.back_up(coding, stream)});
    }
    try {
      add<S>(operations, plan, q, k, stream);
    } catch (...) {
      for (Before &each : before) {
        operations.restore(each.coding, std::move(each.backup));
        observed(each.coding) = each.observed;
      }
      throw;
    }
  }

 private:
  template <Element S, class Operations, class Stream>
  void add(Operations &operations, const AppendPlan<Operations> &plan, TensorView<const S> q,
           TensorView<const S> k, Stream stream) {
    for (std::size_t i = 0; i < plan.layers().size(); ++i) {
      const auto &job = plan.jobs()[i];
      const Index position = plan.layers()[i]->next_position;
      Index &seen = observed(job.coding);
      const auto add = [&](Index first, Index count) {
        operations.template observe<S>(job.coding, q, k, job.first_row + first, count, job.past + first,
                                       position + first, stream);
        seen += count;
      };
      const Index wanted = std::clamp<Index>(tokens_to_learn_ - seen, 0, job.tokens);
      if (wanted > 0) {
        add(0, wanted);
        if (seen == tokens_to_learn_) operations.learn(job.coding, stream);
      }
      const Index more = job.tokens - wanted;
      if (more > 0 && q.tokens > 0 && keep_statistics_) add(wanted, more);
    }
  }

  Index &observed(Index coding) { return observed_[static_cast<std::size_t>(coding)]; }

  /// Tokens a coding has to see before it packs.
  static Index tokens_to_learn(const Options &options, int key_bits) {
    if (key_bits == 16 || !learns_from_prompt(*options.coding)) return 0;
    const Index first_page = options.sinks + options.residual + options.page_tokens;
    return options.prior ? first_page : std::max<Index>(options.statistics_tokens, first_page);
  }

  Index tokens_to_learn_;
  bool keep_statistics_;
  std::vector<Index> observed_;
};

}  // namespace squat::inline SQUAT_API_NAMESPACE
