#pragma once

// The parts of a split context that a rank has, and where their next tokens stand.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "squat/cache/options.hpp"
#include "squat/cache/sequence_tokens.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/parallel/context_runs.hpp"
#include "squat/parallel/split_sequence.hpp"

namespace squat::detail {

/// A part is packed when its run has ended, and begins the next where that stands.
template <class Cache, class Transport>
class OwnParts {
 public:
  OwnParts(Cache &cache, Transport &transport, int parts, Index tokens_to_learn)
      : cache_(&cache),
        transport_(&transport),
        sizes_(RunSizes::of(cache.options(), parts, tokens_to_learn)) {
    for (int part = transport.rank(); part < parts; part += transport.ranks()) parts_.push_back(part);
  }

  /// Which they are.
  std::span<const int> parts() const { return parts_; }
  /// Runs of all parts.
  const RunSizes &sizes() const { return sizes_; }

  /// Where a part stands among them. Throws Error for another rank's.
  std::size_t place_of(std::int64_t part) const {
    const auto found = std::find(parts_.begin(), parts_.end(), part);
    if (found == parts_.end()) throw_invalid("part", part, "one of this rank's");
    return static_cast<std::size_t>(found - parts_.begin());
  }

  /// The next token of a part is the first of a run.
  template <Element S, class Stream>
  void begin_run(SequenceId local, int layer, const ContextRun &run, Stream stream) {
    if (are_all()) return;
    cache_->template pack<S>(local, layer, stream);
    cache_->continue_at(local, layer, run.position, stream);
  }

  /// Packs the last run of each part once there are `residual` tokens behind it, `before` and `after`
  /// being the tokens of a layer. Earlier ones were packed when the next began. pack(local) packs.
  template <class Pack>
  void pack_runs(const SplitSequence &sequence, Index before, Index after, Pack &&pack) const {
    if (are_all() || before == after) return;
    const auto &runs = sequence.runs.all();
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const auto last = std::find_if(runs.rbegin(), runs.rend(), [&](const ContextRun &run) {
        return run.part == parts_[i] && run.first < after;
      });
      if (last == runs.rend()) continue;
      const Index due = last->end() + options().residual;
      if (before < due && due <= after) pack(sequence.local[i]);
    }
  }

  /// After a cut behind `tokens` tokens. Collective.
  template <class Stream>
  void end_at(SplitSequence &sequence, Index tokens, Stream stream) {
    sequence.runs.truncate(tokens);
    if (tokens > 0) return end_run(sequence, tokens, 0, stream);
    stand_at(sequence, tokens, stream);
  }

  /// After a cut, `tokens` tokens are left; the last run, which has them or a place behind them, has
  /// lost `lost` of its own. It ends now where its part has whole pages: all ranks ask who has the part.
  /// Collective.
  template <class Stream>
  void end_run(SplitSequence &sequence, Index tokens, Index lost, Stream stream) {
    if (!are_all()) {
      const ContextRun run = sequence.runs.all().back();
      const int ranks = transport_->ranks();
      const auto rank = static_cast<int>(run.part % ranks);
      Index more = 0;
      if (rank == transport_->rank()) more = places(sequence, tokens, run.end() + lost - tokens);
      std::vector<Index> all(static_cast<std::size_t>(ranks));
      transport_->all_gather(std::as_bytes(std::span(&more, 1)), std::as_writable_bytes(std::span(all)));
      sequence.runs.end_behind(tokens, all[static_cast<std::size_t>(rank)], sizes_);
    }
    stand_at(sequence, tokens, stream);
  }

  /// A sequence has `tokens` tokens in all layers, and each part stands behind its last.
  template <class Stream>
  void stand_at(SplitSequence &sequence, Index tokens, Stream stream) {
    sequence.lengths.assign(static_cast<std::size_t>(options().layers), tokens);
    sequence.captured_to = 0;
    if (are_all()) return;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const Index position = sequence.runs.position_behind(parts_[i], tokens);
      for (int layer = 0; layer < options().layers; ++layer)
        cache_->continue_at(sequence.local[i], layer, position, stream);
    }
  }

 private:
  const Options &options() const { return cache_->options(); }

  /// Whether there is one part.
  bool are_all() const { return sizes_.parts == 1; }

  /// How many tokens more an own part's run takes, so that they are whole pages with its tail: `most`,
  /// or less than a page beside that; none where layers differ.
  Index places(const SplitSequence &sequence, Index tokens, Index most) const {
    const ContextRun &run = sequence.runs.all().back();
    if (run.first >= tokens) return most;  // packed before it begins
    const SequenceId local = sequence.local[place_of(run.part)];
    const Index page = options().page_tokens;
    const auto to_whole_pages = [&](int layer) {
      return (page - cache_->tail(local, layer) % page) % page;
    };
    const Index first = to_whole_pages(0);
    for (int layer = 1; layer < options().layers; ++layer) {
      if (to_whole_pages(layer) != first) return 0;
    }
    const bool has_sinks = run.first == 0 && run.part == 0;
    const Index sinks = has_sinks ? std::max<Index>(0, options().sinks - tokens) : 0;
    return sinks + first + std::max<Index>(0, most - sinks - first) / page * page;
  }

  Cache *cache_;
  Transport *transport_;
  RunSizes sizes_;
  std::vector<int> parts_;
};

}  // namespace squat::detail
