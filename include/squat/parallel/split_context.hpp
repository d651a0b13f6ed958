#pragma once

// Context parallelism: the tokens of every sequence split over ranks, for contexts that outgrow one
// machine, or are to be read by several at once.
//
// A sequence's tokens go in runs (a rotary tile each) round the parts of a context, of which every rank
// has one or more. A rank keeps its part in an ordinary cache: a token's key and value are at one part
// alone, the sinks at part 0, and what is exact among the newest tokens is so by their place in the
// sequence. Positions are the sequence's, so that pages are coded as one cache would have coded them. A
// query attends to every part by itself, and what comes of it is merged by the sums of exponentials:
//
//   out = sum_p w_p out_p / sum_p w_p,   w_p = exp(lse_p - max_p lse_p)
//
// for which each rank hands query_heads * (value_dim + 1) numbers a token and layer to all others,
// however long the context is. All ranks code with what part 0 has learnt from the first tokens.
//
// Every rank makes the same calls in the same order. The library has no transport of its own: an engine
// brings two operations of whatever connects its ranks (RankTransport); examples/parallel has MPI's and
// NCCL's.

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "squat/cache/attention_tensors.hpp"
#include "squat/cache/batch_rows.hpp"
#include "squat/cache/check.hpp"
#include "squat/cache/named_once.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/sequence_table.hpp"
#include "squat/cache/sequence_tokens.hpp"
#include "squat/cache/snapshot/streams.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/tensor.hpp"
#include "squat/parallel/captured_steps.hpp"
#include "squat/parallel/context_call.hpp"
#include "squat/parallel/context_record.hpp"
#include "squat/parallel/context_runs.hpp"
#include "squat/parallel/own_parts.hpp"
#include "squat/parallel/part_attention.hpp"
#include "squat/parallel/rank_transport.hpp"
#include "squat/parallel/shared_codings.hpp"
#include "squat/parallel/split_sequence.hpp"

namespace squat {

/// The sequences of a cache that is one of several, split by context. Cache: a KVCache, on the CPU or,
/// with split_context.cuh, on CUDA: then a call of one token for every sequence neither waits nor
/// allocates where the transport is a StreamTransport, and may be captured, see steps_alike().
///
/// A call of several tokens is causal as in one cache: tokens see their own call's tokens before them,
/// exact those of their own run, as pages hold them those of earlier runs (where one cache would have
/// them exact: within the coding's rounding).
///
/// Errors of arguments are thrown by all ranks alike, and leave them as they were. Where one rank alone
/// throws (out of memory, an element out of range, a transport that fails) the ranks are apart: end.
template <class Cache, RankTransport Transport>
class SplitContext {
 public:
  /// The sequences of a call, and how many tokens each.
  using Batch = std::span<const SequenceTokens>;
  /// The last argument of every call that works on tokens.
  using Stream = typename Cache::CallStream;
  /// Whether the cache counts replays of captured steps.
  static constexpr bool replays = requires(Cache & a_cache, Batch batch) {
    a_cache.count_steps(batch, 1);
  };

  /// cache: of the same options on every rank, and without sequences of its own. Both outlive this.
  /// parts: of every sequence, at least one a rank; 0: one a rank. With more, what was saved loads at
  /// any number of ranks up to that: rank r has the parts r, r + ranks, and so on. Throws Error for
  /// attention_window and alibi_slopes, which go by how many tokens are between two, where a part knows
  /// its own alone, and where sequences learn for themselves.
  SplitContext(Cache &cache, Transport &transport, int parts = 0)
      : cache_(&cache),
        transport_(&transport),
        parts_(parts == 0 ? transport.ranks() : parts),
        codings_(cache, transport, parts_),
        own_(cache, transport, parts_, codings_.tokens_to_learn()),
        attention_(cache, transport, parts_) {
    const Options &options = cache.options();
    if (parts_ < transport.ranks())
      throw_invalid("parts", parts_, "0, or at least the ranks, which are", transport.ranks());
    if (options.attention_window != 0)
      throw_invalid("attention_window", options.attention_window, "0 where the context is split");
    if (!options.alibi_slopes.empty())
      throw_invalid("alibi_slopes.size", options.alibi_slopes.size(), "0 where the context is split");
  }

  /// @{
  /// Parts of every sequence, and those of them that this rank has.
  int parts() const { return parts_; }
  std::span<const int> own_parts() const { return own_.parts(); }
  /// @}

  /// What a sequence is in the cache of this rank, which has the part: to read it, not to change it.
  SequenceId local(SequenceId sequence, int part) const {
    return find(sequence).local[own_.place_of(part)];
  }

  /// An empty sequence. Handles are the same on all ranks.
  SequenceId add_sequence() {
    Sequence state;
    state.lengths.resize(static_cast<std::size_t>(layers()));
    for (std::size_t i = 0; i < own_.parts().size(); ++i) state.local.push_back(cache_->add_sequence());
    return add(std::move(state));
  }

  /// As KVCache::remove_sequence().
  void remove_sequence(SequenceId sequence) {
    for (const SequenceId local : find(sequence).local) cache_->remove_sequence(local);
    sequences_.remove(sequence);
  }

  /// @{
  /// Tokens of all parts: present in every layer, or in one.
  Index length(SequenceId sequence) const {
    const auto &lengths = find(sequence).lengths;
    return *std::min_element(lengths.begin(), lengths.end());
  }
  Index length(SequenceId sequence, int layer) const {
    check_layer(layer);
    return find(sequence).lengths[static_cast<std::size_t>(layer)];
  }
  /// @}

  /// The rank that keeps a token, there or to come. Of the rows of k and v in a call, a rank reads those
  /// of its own tokens alone: the others' need not be computed.
  int rank_of(SequenceId sequence, Index token) const {
    if (token < 0) throw_invalid("token", token, "0 or more");
    detail::ContextRuns runs = find(sequence).runs;
    runs.extend(token + 1, own_.sizes());
    return static_cast<int>(runs.part_of(token)) % transport_->ranks();
  }

  /// How many tokens of a sequence the next call may bring. While codings have not learnt, those of the
  /// first run alone: all layers must have them before another part packs a page.
  Index room(SequenceId sequence) const {
    constexpr Index most = Index{1} << 32;
    return codings_.seen_enough() ? most : first_run(find(sequence)) - length(sequence);
  }

  /// Appends k and v, each row at its own part, and attends to all parts: as KVCache::attend(), with the
  /// same queries on every rank, and the same outputs. Without `out`, as KVCache::append(), which
  /// codings learn from where there is q. Collective.
  template <Element S>
  void attend(Batch batch, int layer, const AttentionTensors<S> &tensors, Stream stream = {}) {
    check(batch, layer, tensors);
    check_room(batch, layer);
    const bool captured = attention_.is_capturing(stream);
    if (captured) captured_steps().note(call_, tensors.out.tokens > 0);
    codings_.share(stream);
    call_.cut(layer, own_.sizes());
    const bool attends = tensors.out.tokens > 0;
    if (attends) attention_.reserve(tensors, stream);
    if (!captured) codings_.count(layer, call_.tokens_to_learn());
    attention_.append(call_, own_, layer, tensors, stream);
    if (attends) attention_.merge(batch, layer, tensors, stream);
    if (captured) return;
    for (const Entry &entry : call_.entries()) {
      Index &length = entry.sequence->lengths[static_cast<std::size_t>(layer)];
      own_.pack_runs(*entry.sequence, length, length + entry.tokens,
                     [&](SequenceId local) { cache_->template pack<S>(local, layer, stream); });
      length += entry.tokens;
    }
  }

  /// How many steps, a token of every sequence of a batch in each, a graph does right that is captured
  /// now, on every rank: of attend() in every layer, taken once before without a graph. advance() counts
  /// them, at most `page_tokens` at a time. Steps are alike from the third of a run until that ends, or
  /// another part packs its own: 0 says that the next is to be taken without a graph, as where a rank
  /// has several parts and sequences go on at different ones. Fewer on a rank whose cache has to make
  /// room before: ranks need not replay together. Always 0 where a rank has more than 4,
  /// keys alone or values alone are packed, codings are not learnt, or the transport gathers by way of
  /// the host. The batch's token counts are not read.
  Index steps_alike(Batch batch) const requires replays {
    const detail::CapturedSteps captured = captured_steps();
    Index steps = batch.empty() ? 0 : std::numeric_limits<Index>::max();
    for (const SequenceTokens &entry : batch) {
      const Sequence &state = find(entry.sequence);
      state.check_between_steps();
      steps = std::min(steps, captured.alike(state));
      if (steps > 0 && !captured.together(find(batch.front().sequence), state)) return 0;
      if (steps > 0) steps = std::min(steps, steps_with_room(state));
    }
    return steps;
  }

  /// Counts `steps` replays of a captured step, as KVCache::advance(). Does not wait. Throws Error for
  /// more than steps_alike() said before the capture, and where a sequence was cut, moved or reordered
  /// since: what the graph did is wrong then. S: see KVCache::pack().
  template <Element S = half>
  void advance(Batch batch, Index steps, Stream stream = {}) requires replays {
    for (const SequenceTokens &entry : batch) {
      const Sequence &state = find(entry.sequence);
      state.check_between_steps();
      const Index alike = std::max<Index>(0, state.captured_to - state.lengths.front());
      checks::check_range("steps", steps, 0, std::min<Index>(cache_->options().page_tokens, alike));
    }
    if (steps == 0) return;
    for (std::size_t i = 0; i < own_.parts().size(); ++i) {
      counted_.clear();
      for (const SequenceTokens &entry : batch) {
        const Sequence &state = find(entry.sequence);
        if (state.runs.part_of(state.lengths.front()) == own_.parts()[i])
          counted_.push_back({state.local[i], 1});
      }
      if (!counted_.empty()) cache_->count_steps(counted_, steps, stream);
    }
    for (const SequenceTokens &entry : batch) {
      Sequence &state = find(entry.sequence);
      const Index before = state.lengths.front();
      own_.pack_runs(state, before, before + steps, [&](SequenceId local) {
        for (int layer = 0; layer < layers(); ++layer) cache_->template pack<S>(local, layer, stream);
      });
      state.lengths.assign(state.lengths.size(), before + steps);
    }
  }

  /// As KVCache::draft(): the part that the next token of a sequence goes to attends to the draft, too.
  /// Collective.
  template <Element S>
  void draft(Batch batch, int layer, const AttentionTensors<S> &tensors, std::span<const Index> parents,
             Stream stream = {}) requires Cache::drafts {
    check(batch, layer, tensors);
    if (tensors.out.tokens != tensors.k.tokens)
      throw_invalid("out.tokens", tensors.out.tokens, "that of k,", tensors.k.tokens);
    if (parents.size() != static_cast<std::size_t>(tensors.k.tokens))
      throw_invalid("parents.size", parents.size(), "the tokens of q,", tensors.k.tokens);
    for (const Entry &entry : call_.entries())
      checks::check_paths(parents.subspan(static_cast<std::size_t>(entry.first_row),
                                          static_cast<std::size_t>(entry.tokens)));
    if (attention_.is_capturing(stream))
      throw Error("squat: stream is being captured, and a draft waits for it, to check elements");
    attention_.reserve(tensors, stream);
    attention_.draft(call_, own_, layer, tensors, parents, stream);
    attention_.merge(batch, layer, tensors, stream);
  }

  /// As KVCache::truncate(), between two steps: where all layers have the same tokens. Collective.
  void truncate(SequenceId sequence, Index tokens, Stream stream = {}) {
    Sequence &state = find(sequence);
    state.check_cut(tokens);
    for (std::size_t i = 0; i < own_.parts().size(); ++i)
      cache_->truncate(state.local[i], state.runs.held(own_.parts()[i], tokens), stream);
    own_.end_at(state, tokens, stream);
  }

  /// As KVCache::fork(), between two steps. Collective.
  SequenceId fork(SequenceId parent, Index tokens, Stream stream = {}) {
    const Sequence &from = find(parent);
    from.check_cut(tokens);
    Sequence child;
    child.runs = from.runs;
    child.lengths = from.lengths;
    for (std::size_t i = 0; i < own_.parts().size(); ++i)
      child.local.push_back(
          cache_->fork(from.local[i], from.runs.held(own_.parts()[i], tokens), stream));
    own_.end_at(child, tokens, stream);
    return add(std::move(child));
  }

  /// As KVCache::reorder(). Not collective.
  void reorder(std::span<const SequenceId> sequences, std::span<const SequenceId> parents,
               Stream stream = {}) {
    if (sequences.size() != parents.size())
      throw_invalid("parents.size", parents.size(), "that of sequences,", sequences.size());
    named_.begin();
    std::vector<SequenceId> to, from;  // the cache's
    std::vector<Sequence> become;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      Sequence &sequence = find(sequences[i]);
      const Sequence &parent = find(parents[i]);
      named_.name("sequences", sequences[i], sequence);
      to.insert(to.end(), sequence.local.begin(), sequence.local.end());
      from.insert(from.end(), parent.local.begin(), parent.local.end());
      become.push_back({.runs = parent.runs, .lengths = parent.lengths, .local = sequence.local});
    }
    auto plan = cache_->prepare_reorder(to, from, stream);
    cache_->commit_reorder(plan, stream);
    for (std::size_t i = 0; i < sequences.size(); ++i) find(sequences[i]) = std::move(become[i]);
  }

  /// As KVCache::shift(), between two steps. Throws Error, too, where a token would stand before
  /// position 0, and where none is left and the next would not be the first. Newest tokens that share
  /// less than a page with others of their part, because `first` or `last` is among them, are packed
  /// with larger errors. Collective.
  void shift(SequenceId sequence, Index first, Index last, Index by, Stream stream = {}) {
    Sequence &state = find(sequence);
    state.check_between_steps();
    const Index tokens = state.lengths.front(), left = tokens - (last - first);
    checks::check_range("last", last, 0, tokens);
    checks::check_range("first", first, 0, last);
    if (by != 0 && cache_->options().rotary.empty()) throw_invalid("by", by, "0 without a rotary table");
    state.runs.extend(tokens + 1, own_.sizes());
    constexpr Index farthest = Index{1} << 32;
    const Index moved = state.runs.position_of(last), next = state.runs.position_of(tokens);
    checks::check_range("by", by, left > 0 ? -moved : -next, left > 0 ? farthest - next : -next);
    for (std::size_t i = 0; i < own_.parts().size(); ++i) {
      const Index begin = state.runs.held(own_.parts()[i], first),
                  end = state.runs.held(own_.parts()[i], last);
      if (parts_ == 1 || begin < state.runs.held(own_.parts()[i], tokens))
        cache_->shift(state.local[i], begin, end, by, stream);
    }
    if (left == 0) return own_.end_at(state, 0, stream);
    own_.end_run(state, left, state.runs.shift(first, last, by), stream);
  }

  /// Writes a part that this rank has, between two steps: which tokens parts have, then a snapshot as
  /// KVCache::save(). A sequence is in the snapshots of all its parts. Not collective.
  template <class Out>
  void save(SequenceId sequence, int part, Out &&out, Stream stream = {}) {
    const Sequence &state = find(sequence);
    state.check_between_steps();
    const SequenceId of_part = local(sequence, part);
    detail::with_sink(out, [&](auto &sink) {
      detail::write_runs(sink, state.runs, parts_, part, state.lengths.front());
      cache_->save(of_part, sink, {}, stream);
    });
  }

  /// A sequence from the snapshots of this rank's parts, in the order of own_parts(): see
  /// KVCache::load(). sources: SnapshotSources. Throws Error for snapshots of other parts or of a
  /// context of another number of parts, and where KVCache::load() does; nothing has changed then.
  template <SnapshotSource Source>
  SequenceId load(std::span<Source> sources, Stream stream = {}) {
    if (sources.size() != own_.parts().size())
      throw_invalid("sources.size", sources.size(), "the parts that this rank has,",
                    own_.parts().size());
    Sequence state;
    Index length = 0;
    try {
      for (std::size_t i = 0; i < own_.parts().size(); ++i) {
        auto [runs, tokens] = detail::read_runs(sources[i], parts_, own_.parts()[i]);
        const SequenceId local = cache_->load(sources[i], {}, stream);
        state.local.push_back(local);
        for (int layer = 0; layer < layers(); ++layer) {
          if (cache_->length(local, layer) != runs.held(own_.parts()[i], tokens) ||
              (i > 0 && tokens != length))
            throw Error("squat: snapshot is of other tokens than it says");
        }
        length = tokens;
        state.runs = std::move(runs);
      }
    } catch (...) {
      for (const SequenceId local : state.local) cache_->remove_sequence(local);
      throw;
    }
    codings_.count_all();  // perhaps
    own_.stand_at(state, length, stream);
    return add(std::move(state));
  }

 private:
  using Sequence = detail::SplitSequence;
  using Entry = detail::ContextCall::Entry;

  int layers() const { return cache_->options().layers; }

  void check_layer(int layer) const { checks::check_range("layer", layer, 0, layers() - 1); }

  Sequence &find(SequenceId sequence) const { return sequences_.find(sequence); }

  SequenceId add(Sequence state) {
    sequences_.reserve();
    return sequences_.add(std::make_unique<Sequence>(std::move(state)));
  }

  // ---- checks

  /// And takes the batch.
  template <Element S>
  void check(Batch batch, int layer, const AttentionTensors<S> &tensors) {
    check_layer(layer);
    detail::check_rows_of_call(tensors, cache_->options());
    named_.begin();
    for (const SequenceTokens &entry : batch)
      named_.name("batch.sequence", entry.sequence, find(entry.sequence));
    detail::check_rows(batch, tensors.k.tokens);
    call_.take(batch, [&](SequenceId sequence) -> Sequence & { return find(sequence); });
  }

  /// Throws Error for tokens that come before codings are learnt.
  void check_room(Batch batch, int layer) const {
    if (codings_.seen_enough()) return;
    for (const SequenceTokens &entry : batch) {
      const Sequence &state = find(entry.sequence);
      const Index room = first_run(state) - state.lengths[static_cast<std::size_t>(layer)];
      if (entry.learn && entry.tokens > room)
        throw_invalid("batch.tokens", entry.tokens,
                      "at most what part 0 learns from before others have tokens,", room);
    }
  }

  /// Tokens of a sequence's first run.
  Index first_run(const Sequence &state) const {
    return state.runs.all().empty() ? own_.sizes().first : state.runs.all().front().count;
  }

  /// Steps of a sequence that this rank's cache takes without making room; any number from a page on.
  Index steps_with_room(const Sequence &state) const requires replays {
    Index least = std::numeric_limits<Index>::max();
    for (std::size_t i = 0; i < own_.parts().size(); ++i) {
      if (state.runs.part_of(state.lengths.front()) != own_.parts()[i]) continue;
      const std::array step{SequenceTokens{state.local[i], 1}};
      const Index steps = cache_->steps_to_replay(step);
      if (steps < cache_->options().page_tokens) least = steps;
    }
    return least;
  }

  detail::CapturedSteps captured_steps() const {
    constexpr int most_parts = 4;  // of a rank, which reads the others' batches
    const bool mixed = (cache_->key_bits() == 16) != (cache_->value_bits() == 16);
    const int ranks = transport_->ranks();
    return {.possible = codings_.shared() && !mixed && parts_ <= most_parts * ranks &&
                        (ranks == 1 || attention_.gathers_on_stream),
            .one_part = parts_ == ranks,
            .residual = cache_->options().residual};
  }

  Cache *cache_;
  Transport *transport_;
  int parts_;
  detail::SharedCodings<Cache, Transport> codings_;
  detail::OwnParts<Cache, Transport> own_;
  detail::PartAttention<Cache, Transport> attention_;
  detail::SequenceTable<Sequence> sequences_;
  detail::NamedOnce named_;
  detail::ContextCall call_;             // in progress
  std::vector<SequenceTokens> counted_;  // of a part, in progress
};

}  // namespace squat
