#pragma once

// Which part of a split context has which tokens of a sequence.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "squat/cache/options.hpp"
#include "squat/core/config.hpp"

namespace squat::detail {

/// Tokens [first, first + count) of a sequence, which one part has.
struct ContextRun {
  std::int64_t first;
  std::int64_t count;
  std::int64_t part;

  Index end() const { return first + count; }
};
static_assert(sizeof(ContextRun) == 24);

/// How long runs are.
struct RunSizes {
  Index parts;
  Index first;  ///< tokens of a sequence's first run, with its sinks
  Index next;   ///< of every other: whole pages, `residual` tokens at least

  /// options: in force. tokens_to_learn: that part 0 must have to itself, so that codings are learnt
  /// before another part packs a page.
  static RunSizes of(const Options &options, Index parts, Index tokens_to_learn) {
    constexpr Index usual = 256;
    const auto rounded = [](Index tokens, Index unit) { return (tokens + unit - 1) / unit * unit; };
    const Index unit =
        *options.tile_tokens > 0 ? Index{*options.tile_tokens} : rounded(usual, options.page_tokens);
    const Index next = rounded(std::max<Index>(1, options.residual), unit);
    const Index behind_sinks = rounded(std::max<Index>(1, tokens_to_learn - options.sinks), unit);
    return {parts, options.sinks + std::max(next, behind_sinks), next};
  }
};

/// The runs of one sequence. They follow one another from token 0 on and go round the parts, so that all
/// parts grow alike. Every rank keeps the same.
class ContextRuns {
 public:
  ContextRuns() = default;
  explicit ContextRuns(std::vector<ContextRun> runs) : runs_(std::move(runs)) {}

  const std::vector<ContextRun> &all() const { return runs_; }

  /// Makes sure that tokens up to `end` are in runs.
  void extend(Index end, const RunSizes &sizes) {
    if (runs_.empty())
      runs_.push_back({0, sizes.parts == 1 ? std::numeric_limits<Index>::max() : sizes.first, 0});
    while (runs_.back().end() < end)
      runs_.push_back({runs_.back().end(), sizes.next, (runs_.back().part + 1) % sizes.parts});
  }

  /// The run that token `token` is in, which is there.
  std::size_t find(Index token) const {
    const auto behind = std::upper_bound(runs_.begin(), runs_.end(), token,
                                         [](Index at, const ContextRun &run) { return at < run.first; });
    return static_cast<std::size_t>(behind - runs_.begin()) - 1;
  }

  /// Calls visit(run, first, count) for the tokens [first, first + count), run by run.
  template <class Visit>
  void for_each(Index first, Index count, Visit &&visit) const {
    const Index end = first + count;
    for (std::size_t i = count > 0 ? find(first) : 0; first < end; ++i) {
      const Index tokens = std::min(end, runs_[i].end()) - first;
      visit(runs_[i], first, tokens);
      first += tokens;
    }
  }

  /// How many of the first `tokens` tokens a part has.
  Index held(Index part, Index tokens) const {
    Index sum = 0;
    for (const ContextRun &run : runs_) {
      if (run.part == part) sum += std::clamp<Index>(tokens - run.first, 0, run.count);
    }
    return sum;
  }

  /// Forgets the runs behind the first `tokens` tokens. closed: the run of the last of them ends there.
  void truncate(Index tokens, bool closed) {
    while (!runs_.empty() && runs_.back().first >= tokens) runs_.pop_back();
    if (closed && !runs_.empty()) runs_.back().count = tokens - runs_.back().first;
  }

 private:
  std::vector<ContextRun> runs_;
};

}  // namespace squat::detail
