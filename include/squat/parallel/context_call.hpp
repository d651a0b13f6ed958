#pragma once

// The rows of a call on a split context, and whose they are.

#include <cstddef>
#include <span>
#include <vector>

#include "squat/cache/attention_tensors.hpp"
#include "squat/cache/batch_rows.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/sequence_tokens.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/parallel/context_runs.hpp"
#include "squat/parallel/split_sequence.hpp"

namespace squat::detail {

/// Throws Error for tensors of a call that do not fit each other, or the cache's options.
template <Element S>
void check_rows_of_call(const AttentionTensors<S> &tensors, const Options &options) {
  const Index rows = tensors.k.tokens;
  const auto check_rows = [&](const char *name, Index found) {
    if (found != rows) throw_invalid(name, found, "that of k,", rows);
  };
  check_rows("v.tokens", tensors.v.tokens);
  if (tensors.q.tokens > 0 || tensors.out.tokens > 0) check_rows("q.tokens", tensors.q.tokens);
  if (tensors.out.tokens > 0) {
    check_rows("out.tokens", tensors.out.tokens);
    if (tensors.lse.tokens > 0) check_rows("lse.tokens", tensors.lse.tokens);
    if (tensors.out.heads != options.query_heads)
      throw_invalid("out.heads", tensors.out.heads, "query_heads, which is", options.query_heads);
    if (tensors.out.head_dim != options.value_dim)
      throw_invalid("out.head_dim", tensors.out.head_dim, "value_dim, which is", options.value_dim);
  }
  if (!tensors.causal) throw_invalid("causal", false, "true where keys are appended");
}

/// The sequences of a call that have tokens in it, and their rows.
class ContextCall {
 public:
  struct Entry {
    SplitSequence *sequence;
    Index first_row;
    Index tokens;
    bool learn;
  };

  /// Rows that one part has, the next of their entry.
  struct Segment {
    std::size_t entry;
    ContextRun run;
    Index token;  // of the sequence, the first
    Index row;
    Index count;
  };

  /// Takes a checked batch. find(id) is the sequence.
  template <class Find>
  void take(std::span<const SequenceTokens> batch, Find &&find) {
    entries_.clear();
    waves_.clear();
    for_each_entry(batch, [&](const SequenceTokens &entry, Index row) {
      entries_.push_back({&find(entry.sequence), row, entry.tokens, entry.learn});
    });
  }

  const std::vector<Entry> &entries() const { return entries_; }

  /// Cuts the rows, which are appended, into segments.
  void cut(int layer, const RunSizes &sizes) {
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      const Entry &entry = entries_[i];
      const Index past = entry.sequence->lengths[static_cast<std::size_t>(layer)];
      entry.sequence->runs.extend(past + entry.tokens, sizes);
      std::size_t wave = 0;
      entry.sequence->runs.for_each(
          past, entry.tokens, [&](const ContextRun &run, Index first, Index count) {
            if (wave == waves_.size()) waves_.emplace_back();
            waves_[wave++].push_back({i, run, first, entry.first_row + first - past, count});
          });
    }
  }

  /// The segments: the first of all entries before the second of any.
  const std::vector<std::vector<Segment>> &waves() const { return waves_; }

  /// Of those, that codings learn from: part 0's.
  Index tokens_to_learn() const {
    Index tokens = 0;
    for (const std::vector<Segment> &wave : waves_) {
      for (const Segment &segment : wave) {
        if (segment.run.part == 0 && entries_[segment.entry].learn) tokens += segment.count;
      }
    }
    return tokens;
  }

 private:
  std::vector<Entry> entries_;
  std::vector<std::vector<Segment>> waves_;
};

}  // namespace squat::detail
