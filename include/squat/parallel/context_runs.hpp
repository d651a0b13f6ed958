#pragma once

// Which part of a split context has which tokens of a sequence.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "squat/cache/options.hpp"
#include "squat/core/config.hpp"

namespace squat::detail {

/// Tokens [first, first + count) of a sequence, which one part has, and which stand at `position` and
/// behind it.
struct ContextRun {
  std::int64_t first;
  std::int64_t count;
  std::int64_t part;
  std::int64_t position;

  Index end() const { return first + count; }
  Index position_of(Index token) const { return position + token - first; }
};
static_assert(sizeof(ContextRun) == 32);

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
/// parts grow alike; a shift cuts them, and may leave a part two that are neighbours. Every rank keeps
/// the same.
class ContextRuns {
 public:
  ContextRuns() = default;
  explicit ContextRuns(std::vector<ContextRun> runs) : runs_(std::move(runs)) {}

  const std::vector<ContextRun> &all() const { return runs_; }

  /// Makes sure that tokens up to `end` are in runs.
  void extend(Index end, const RunSizes &sizes) {
    if (runs_.empty()) runs_.push_back({0, sizes.parts == 1 ? Index{1} << 62 : sizes.first, 0, 0});
    while (runs_.back().end() < end) runs_.push_back(next_run(sizes));
  }

  /// The run that token `token` is in, which is there.
  std::size_t find(Index token) const {
    const auto behind = std::upper_bound(runs_.begin(), runs_.end(), token,
                                         [](Index at, const ContextRun &run) { return at < run.first; });
    return static_cast<std::size_t>(behind - runs_.begin()) - 1;
  }

  /// Which part has token `token`, which is in a run.
  Index part_of(Index token) const { return runs_[find(token)].part; }
  /// Where it stands.
  Index position_of(Index token) const { return runs_[find(token)].position_of(token); }

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

  /// Position behind the last that a part has of the first `tokens` tokens; 0 if it has none.
  Index position_behind(Index part, Index tokens) const {
    Index position = 0;
    for (const ContextRun &run : runs_) {
      if (run.part == part && run.first < tokens)
        position = run.position_of(std::min(tokens, run.end()));
    }
    return position;
  }

  /// How many tokens may come one by one behind the first `tokens`, all alike: to the same part, and
  /// until another has `residual` tokens behind its run, upon which it packs. The first two of a run are
  /// like no others: its part may have no memory for tokens before the first, and is in no such step
  /// then.
  Index steps_alike(Index tokens, Index residual) const {
    if (tokens == 0) return 0;
    const ContextRun &last = runs_[find(tokens - 1)];
    if (tokens < last.first + 2) return 0;
    Index steps = last.end() - tokens;
    for (const ContextRun &run : runs_) {
      const Index due = run.end() + residual - tokens;
      if (run.part != last.part && run.first < tokens && due > 0) steps = std::min(steps, due);
    }
    return steps;
  }

  /// Forgets the runs behind the first `tokens` tokens.
  void truncate(Index tokens) {
    while (!runs_.empty() && runs_.back().first >= tokens) runs_.pop_back();
  }

  /// Drops the tokens [first, last) and moves what follows by `by` positions; the last run has a place
  /// behind `last`. Returns how many tokens the last run has lost.
  Index shift(Index first, Index last, Index by) {
    const ContextRun back = runs_.back();
    std::vector<ContextRun> old = std::exchange(runs_, {});
    for (const ContextRun &run : old) {
      const Index left = std::min(first, run.end()), right = std::max(last, run.first);
      if (left > run.first) add({run.first, left - run.first, run.part, run.position});
      if (right < run.end())
        add({right - (last - first), run.end() - right, run.part, run.position_of(right) + by});
    }
    return std::max<Index>(0, last - std::max(first, back.first));
  }

  /// The last run ends `more` tokens behind the first `tokens` tokens; the next goes to the next part.
  void end_behind(Index tokens, Index more, const RunSizes &sizes) {
    ContextRun &last = runs_.back();
    last.count = tokens + more - last.first;
    if (last.count > 0) return;
    const ContextRun next = next_run(sizes);
    last = next;
  }

 private:
  ContextRun next_run(const RunSizes &sizes) const {
    const ContextRun &last = runs_.back();
    return {last.end(), sizes.next, (last.part + 1) % sizes.parts, last.position_of(last.end())};
  }

  /// Behind the others, or as more of the last where it goes on with it.
  void add(const ContextRun &run) {
    if (!runs_.empty() && runs_.back().part == run.part &&
        runs_.back().position_of(run.first) == run.position) {
      runs_.back().count += run.count;
    } else {
      runs_.push_back(run);
    }
  }

  std::vector<ContextRun> runs_;
};

}  // namespace squat::detail
