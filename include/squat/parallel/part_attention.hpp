#pragma once

// How a call of a split context goes through the parts of a rank.

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "squat/cache/attention_tensors.hpp"
#include "squat/cache/batch_rows.hpp"
#include "squat/cache/call.hpp"
#include "squat/cache/sequence_tokens.hpp"
#include "squat/core/config.hpp"
#include "squat/core/tensor.hpp"
#include "squat/parallel/context_call.hpp"
#include "squat/parallel/context_partials.hpp"
#include "squat/parallel/own_parts.hpp"

namespace squat::detail {

/// Part after part, a rank's cache appends the rows that are the part's and reads for all others; each
/// part's results are partials of the call's. Call, Own: the context's, which every call takes.
template <class Cache, class Transport>
class PartAttention {
 public:
  using Stream = typename Cache::CallStream;
  using Own = OwnParts<Cache, Transport>;
  using Partials = ContextPartials<Stream, Transport>;

  PartAttention(Cache &cache, Transport &transport, int parts)
      : cache_(&cache), parts_(parts), ranks_(transport.ranks()), partials_(cache, transport) {}

  /// Whether ranks reach each other in a stream's turn.
  static constexpr bool gathers_on_stream = Partials::gathers_on_stream;
  /// Whether a graph is made of a stream's work.
  static bool is_capturing(Stream stream) { return Partials::is_capturing(stream); }

  /// Makes sure of memory for the partials of a call that attends.
  template <Element S>
  void reserve(const AttentionTensors<S> &tensors, Stream stream) {
    partials_.reserve(
        PartialShape::of<S>(tensors.q.tokens, tensors.out.heads, tensors.out.head_dim, parts_, ranks_),
        stream);
  }

  /// Appends the rows of a call that is cut, and attends where there is `out`: a wave of segments after
  /// the other, for they see those before.
  template <Element S>
  void append(const ContextCall &call, Own &own, int layer, const AttentionTensors<S> &tensors,
              Stream stream) {
    const bool attends = tensors.out.tokens > 0;
    for (std::size_t place = 0; place < own.parts().size(); ++place) {
      const AttentionTensors<S> found =
          attends ? begin_part(call, place, layer, tensors, stream) : tensors;
      for (const std::vector<ContextCall::Segment> &wave : call.waves()) {
        appends_.clear();
        reads_.clear();
        for (const ContextCall::Segment &segment : wave) {
          const ContextCall::Entry &entry = call.entries()[segment.entry];
          const SequenceId local = entry.sequence->local[place];
          const SequenceTokens rows{local, segment.count, segment.row,
                                    entry.learn && segment.run.part == 0};
          if (segment.run.part == own.parts()[place]) {
            if (segment.token == segment.run.first)
              own.template begin_run<S>(local, layer, segment.run, stream);
            appends_.push_back(rows);
          } else if (attends && cache_->length(local, layer) > 0) {
            reads_.push_back(rows);
          }
        }
        if (!appends_.empty()) append_rows<S>(layer, found, stream);
        read_rows<S>(layer, found, stream);
      }
    }
  }

  /// Attends for a draft, which the part that has the next token of a sequence attends to, too.
  template <Element S>
  void draft(const ContextCall &call, const Own &own, int layer, const AttentionTensors<S> &tensors,
             std::span<const Index> parents, Stream stream) {
    for (std::size_t place = 0; place < own.parts().size(); ++place) {
      const AttentionTensors<S> found = begin_part(call, place, layer, tensors, stream);
      appends_.clear();
      reads_.clear();
      for (const ContextCall::Entry &entry : call.entries()) {
        const SequenceTokens rows{entry.sequence->local[place], entry.tokens, entry.first_row};
        const Index next = entry.sequence->lengths[static_cast<std::size_t>(layer)];
        entry.sequence->runs.extend(next + 1, own.sizes());
        if (entry.sequence->runs.part_of(next) == own.parts()[place]) {
          appends_.push_back(rows);
        } else if (cache_->length(rows.sequence, layer) > 0) {
          reads_.push_back(rows);
        }
      }
      if (!appends_.empty()) cache_->draft(appends_, layer, found, parents, stream);
      read_rows<S>(layer, found, stream);
    }
  }

  /// Hands the partials to all ranks and makes outputs of them.
  template <Element S>
  void merge(std::span<const SequenceTokens> batch, int layer, const AttentionTensors<S> &tensors,
             Stream stream) {
    partials_.gather(stream);
    for_each_run(batch, [&](Index first, Index count) {
      const TokenRange rows{first, first + count};
      partials_.template merge<S>(layer, rows, tensors.out, tensors.lse, stream);
    });
  }

 private:
  /// A call's tensors, with an own part's block in the place of its results. Rows that have nothing of
  /// the part to see, while it has no tokens of a sequence, are not written by anybody else.
  template <Element S>
  AttentionTensors<S> begin_part(const ContextCall &call, std::size_t place, int layer,
                                 const AttentionTensors<S> &tensors, Stream stream) {
    const auto &entries = call.entries();
    const bool empty = std::any_of(entries.begin(), entries.end(), [&](const ContextCall::Entry &entry) {
      return cache_->length(entry.sequence->local[place], layer) == 0;
    });
    if (empty) partials_.clear(place, stream);
    return partials_.block(place, tensors);
  }

  template <Element S>
  void append_rows(int layer, const AttentionTensors<S> &tensors, Stream stream) {
    if (tensors.out.tokens > 0) return cache_->attend(appends_, layer, tensors, stream);
    if (tensors.q.tokens > 0)
      return cache_->append(appends_, layer, tensors.q, tensors.k, tensors.v, stream);
    cache_->append(appends_, layer, tensors.k, tensors.v, stream);
  }

  template <Element S>
  void read_rows(int layer, const AttentionTensors<S> &tensors, Stream stream) {
    if (reads_.empty()) return;
    cache_->attend(
        reads_, layer,
        AttentionTensors<S>{.q = tensors.q, .out = tensors.out, .lse = tensors.lse, .causal = false},
        stream);
  }

  Cache *cache_;
  int parts_, ranks_;
  Partials partials_;
  std::vector<SequenceTokens> appends_, reads_;  // of the part in progress
};

}  // namespace squat::detail
