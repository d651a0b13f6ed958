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
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "squat/cache/attention_tensors.hpp"
#include "squat/cache/call.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/sequence_tokens.hpp"
#include "squat/cache/snapshot/streams.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/tensor.hpp"
#include "squat/parallel/context_partials.hpp"
#include "squat/parallel/context_record.hpp"
#include "squat/parallel/context_runs.hpp"
#include "squat/parallel/rank_transport.hpp"

namespace squat {

/// The sequences of a cache that is one of several, split by context. Cache: a KVCache, on the CPU or,
/// with split_context.cuh, on CUDA: then a call of one token for every sequence neither waits nor
/// allocates where the transport is a StreamTransport, and cannot be captured.
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

  /// cache: of the same options on every rank, and without sequences of its own. Both outlive this.
  /// parts: of every sequence, at least one a rank; 0: one a rank. With more, what was saved loads at
  /// any number of ranks up to that: rank r has the parts r, r + ranks, and so on. Throws Error for
  /// options that look at how many tokens are between two (attention_window, alibi_slopes), for
  /// sink_logits, and where sequences learn for themselves.
  SplitContext(Cache &cache, Transport &transport, int parts = 0)
      : cache_(&cache),
        transport_(&transport),
        parts_(parts == 0 ? transport.ranks() : parts),
        partials_(cache, transport) {
    const Options &options = cache.options();
    if (parts_ < transport.ranks())
      throw_invalid("parts", parts_, "0, or at least the ranks, which are", transport.ranks());
    if (options.attention_window != 0)
      throw_invalid("attention_window", options.attention_window, "0 where the context is split");
    if (!options.alibi_slopes.empty())
      throw_invalid("alibi_slopes.size", options.alibi_slopes.size(), "0 where the context is split");
    if (!options.sink_logits.empty())
      throw_invalid("sink_logits.size", options.sink_logits.size(), "0 where the context is split");
    const Index first_page = options.sinks + options.residual + options.page_tokens;
    shared_ = all_learnt();
    to_learn_ = shared_         ? 0
                : options.prior ? first_page
                                : std::max<Index>(options.statistics_tokens, first_page);
    sizes_ = detail::RunSizes::of(options, parts_, to_learn_);
    seen_.resize(static_cast<std::size_t>(options.layers));
    for (int part = transport.rank(); part < parts_; part += transport.ranks()) own_.push_back(part);
  }

  /// @{
  /// Parts of every sequence, and those of them that this rank has.
  int parts() const { return parts_; }
  std::span<const int> own_parts() const { return own_; }
  /// @}

  /// What a sequence is in the cache of this rank, which has the part: to read it, not to change it.
  SequenceId local(SequenceId sequence, int part) const { return find(sequence).local[own(part)]; }

  /// An empty sequence. Handles are the same on all ranks.
  SequenceId add_sequence() {
    State state;
    state.lengths.resize(seen_.size());
    for (std::size_t i = 0; i < own_.size(); ++i) state.local.push_back(cache_->add_sequence());
    return add(std::move(state));
  }

  /// As KVCache::remove_sequence().
  void remove_sequence(SequenceId sequence) {
    for (const SequenceId local : find(sequence).local) cache_->remove_sequence(local);
    states_.erase(sequence.value);
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
    runs.extend(token + 1, sizes_);
    return static_cast<int>(runs.all()[runs.find(token)].part) % transport_->ranks();
  }

  /// How many tokens of a sequence the next call may bring. While codings have not learnt, those of the
  /// first run alone: all layers must have them before another part packs a page.
  Index room(SequenceId sequence) const {
    constexpr Index most = Index{1} << 32;
    return shared_ || parts_ == 1 || seen_enough() ? most : sizes_.first - length(sequence);
  }

  /// Appends k and v, each row at its own part, and attends to all parts: as KVCache::attend(), with the
  /// same queries on every rank, and the same outputs. Without `out`, as KVCache::append(), which
  /// codings learn from where there is q. Collective.
  template <Element S>
  void attend(Batch batch, int layer, const AttentionTensors<S> &tensors, Stream stream = {}) {
    check(batch, layer, tensors);
    partials_.check(stream);
    share_codings(stream);
    plan(layer);
    const bool attends = tensors.out.tokens > 0;
    if (attends) {
      shape_ = detail::PartialShape::of<S>(tensors.q.tokens, tensors.out.heads, tensors.out.head_dim,
                                           parts_, transport_->ranks());
      partials_.reserve(shape_, stream);
    }
    for (std::size_t i = 0; i < own_.size(); ++i) attend_part<S>(i, layer, tensors, stream);
    if (attends) {
      partials_.gather(stream);
      merge<S>(tensors, stream);
    }
    for (Entry &entry : entries_) {
      Index &length = entry.state->lengths[static_cast<std::size_t>(layer)];
      pack_runs<S>(*entry.state, layer, length, length + entry.tokens, stream);
      length += entry.tokens;
    }
  }

  /// As KVCache::truncate(), between two steps: where all layers have the same tokens. Collective.
  void truncate(SequenceId sequence, Index tokens, Stream stream = {}) {
    State &state = find(sequence);
    check_cut(state, tokens);
    for (std::size_t i = 0; i < own_.size(); ++i)
      cache_->truncate(state.local[i], state.runs.held(own_[i], tokens), stream);
    end_at(state, tokens, stream);
  }

  /// As KVCache::fork(), between two steps. Collective.
  SequenceId fork(SequenceId parent, Index tokens, Stream stream = {}) {
    const State &from = find(parent);
    check_cut(from, tokens);
    State child;
    child.runs = from.runs;
    child.lengths = from.lengths;
    for (std::size_t i = 0; i < own_.size(); ++i)
      child.local.push_back(cache_->fork(from.local[i], from.runs.held(own_[i], tokens), stream));
    end_at(child, tokens, stream);
    return add(std::move(child));
  }

  /// Writes a part that this rank has, between two steps: which tokens parts have, then a snapshot as
  /// KVCache::save(). A sequence is in the snapshots of all its parts. Not collective.
  template <class Out>
  void save(SequenceId sequence, int part, Out &&out, Stream stream = {}) {
    const State &state = find(sequence);
    check_cut(state, 0);
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
    if (sources.size() != own_.size())
      throw_invalid("sources.size", sources.size(), "the parts that this rank has,", own_.size());
    State state;
    Index length = 0;
    try {
      for (std::size_t i = 0; i < own_.size(); ++i) {
        auto [runs, tokens] = detail::read_runs(sources[i], parts_, own_[i]);
        const SequenceId local = cache_->load(sources[i], {}, stream);
        state.local.push_back(local);
        for (int layer = 0; layer < layers(); ++layer) {
          if (cache_->length(local, layer) != runs.held(own_[i], tokens) || (i > 0 && tokens != length))
            throw Error("squat: snapshot is of other tokens than it says");
        }
        length = tokens;
        state.runs = std::move(runs);
      }
    } catch (...) {
      for (const SequenceId local : state.local) cache_->remove_sequence(local);
      throw;
    }
    state.lengths.assign(seen_.size(), length);
    std::fill(seen_.begin(), seen_.end(), to_learn_);  // perhaps, which share_codings() asks part 0
    stand_at(state, length, stream);
    return add(std::move(state));
  }

 private:
  struct State {
    detail::ContextRuns runs;
    std::vector<Index> lengths;     // of all parts, in each layer
    std::vector<SequenceId> local;  // the cache's, of each own part
  };

  /// Of a call, a sequence's rows.
  struct Entry {
    State *state;
    Index first_row;
    Index tokens;
    bool learn;
  };

  /// Rows that one part has, the next of their entry.
  struct Segment {
    std::size_t entry;
    detail::ContextRun run;
    Index token;  // of the sequence, the first
    Index row;
    Index count;
  };

  int layers() const { return static_cast<int>(seen_.size()); }

  void check_layer(int layer) const {
    if (layer < 0 || layer >= layers())
      throw_invalid("layer", layer, "0 to one less than layers, which is", layers());
  }

  template <class States>
  static auto &find(States &states, SequenceId sequence) {
    const auto found = states.find(sequence.value);
    if (found == states.end()) throw_invalid("sequence", sequence.value, "one that is there");
    return found->second;
  }
  const State &find(SequenceId sequence) const { return find(states_, sequence); }
  State &find(SequenceId sequence) { return find(states_, sequence); }

  /// Where a part stands among this rank's.
  std::size_t own(std::int64_t part) const {
    const auto found = std::find(own_.begin(), own_.end(), part);
    if (found == own_.end()) throw_invalid("part", part, "one of this rank's");
    return static_cast<std::size_t>(found - own_.begin());
  }

  bool is_own(std::int64_t part) const { return part % transport_->ranks() == transport_->rank(); }

  SequenceId add(State state) {
    states_.emplace(next_, std::move(state));
    return {next_++};
  }

  // ---- checks

  /// And names the rows of entries.
  template <Element S>
  void check(Batch batch, int layer, const AttentionTensors<S> &tensors) {
    check_layer(layer);
    const Options &options = cache_->options();
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
    entries_.clear();
    Index row = 0;
    for (const SequenceTokens &entry : batch) {
      State &state = find(entry.sequence);
      for (const Entry &other : entries_) {
        if (other.state == &state)
          throw_invalid("batch.sequence", entry.sequence.value, "named once in a batch");
      }
      if (entry.first_row != SequenceTokens::behind_the_last) {
        if (entry.first_row < row) throw_invalid("batch.first_row", entry.first_row, "at least", row);
        row = entry.first_row;
      }
      if (entry.tokens < 0 || entry.tokens > rows - row)
        throw_invalid("batch.tokens", entry.tokens,
                      "at least 0 and at most the rows left in the tensors,", rows - row);
      entries_.push_back({&state, row, entry.tokens, entry.learn});
      row += entry.tokens;
      if (shared_ || parts_ == 1 || seen_enough() || !entry.learn) continue;
      const Index room = sizes_.first - state.lengths[static_cast<std::size_t>(layer)];
      if (entry.tokens > room)
        throw_invalid("batch.tokens", entry.tokens,
                      "at most what part 0 learns from before others have tokens,", room);
    }
  }

  /// Whether a sequence may be cut at `tokens`, all layers having the same.
  void check_cut(const State &state, Index tokens) const {
    for (const Index length : state.lengths) {
      if (length != state.lengths.front())
        throw Error("squat: sequence has more tokens in one layer than in another: finish the step");
    }
    if (tokens < 0 || tokens > state.lengths.front())
      throw_invalid("tokens", tokens, "0 to the length of the sequence,", state.lengths.front());
  }

  // ---- codings

  bool all_learnt() const {
    bool learnt = true;
    for (int layer = 0; layer < cache_->options().layers; ++layer)
      learnt = cache_->learnt(layer) && learnt;
    return learnt;
  }

  /// Whether part 0 has had in all layers what codings are learnt from, as every rank knows.
  bool seen_enough() const {
    return std::all_of(seen_.begin(), seen_.end(), [&](Index seen) { return seen >= to_learn_; });
  }

  /// Gives all ranks the codings of part 0 once these have learnt: later where its tokens were no text.
  void share_codings(Stream stream) {
    if (shared_ || parts_ == 1 || !seen_enough()) return;
    const bool first = transport_->rank() == 0;
    std::vector<std::byte> codings;
    if (first && all_learnt()) cache_->save_codings(codings, {}, stream);
    std::uint64_t size = codings.size();
    transport_->broadcast(std::as_writable_bytes(std::span(&size, 1)));
    if (size == 0) return;
    codings.resize(static_cast<std::size_t>(size));
    transport_->broadcast(codings);
    if (!first) cache_->load_codings(codings, {}, stream);
    shared_ = true;
  }

  // ---- attention

  /// Cuts the rows of a call into segments, the first of all entries before the second of any.
  void plan(int layer) {
    waves_.clear();
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      const Entry &entry = entries_[i];
      const Index past = entry.state->lengths[static_cast<std::size_t>(layer)];
      entry.state->runs.extend(past + entry.tokens, sizes_);
      std::size_t wave = 0;
      entry.state->runs.for_each(past, entry.tokens, [&](const auto &run, Index first, Index count) {
        if (wave == waves_.size()) waves_.emplace_back();
        waves_[wave++].push_back({i, run, first, entry.first_row + first - past, count});
        if (run.part == 0 && entry.learn) seen_[static_cast<std::size_t>(layer)] += count;
      });
    }
  }

  /// What comes of an own part, into its block: a segment after the other, for they see those before.
  template <Element S>
  void attend_part(std::size_t place, int layer, const AttentionTensors<S> &tensors, Stream stream) {
    const bool attends = tensors.out.tokens > 0;
    AttentionTensors<S> found = tensors, read;
    if (attends) {
      found = shape_.in_block<S>(partials_.own(place), tensors);
      read = AttentionTensors<S>{.q = found.q, .out = found.out, .lse = found.lse, .causal = false};
      if (is_empty_before(place, layer)) partials_.clear(place, stream);
    }
    for (const std::vector<Segment> &wave : waves_) {
      appends_.clear();
      reads_.clear();
      for (const Segment &segment : wave) {
        const Entry &entry = entries_[segment.entry];
        const SequenceId local = entry.state->local[place];
        SequenceTokens rows{local, segment.count, segment.row, entry.learn && segment.run.part == 0};
        if (segment.run.part == own_[place]) {
          if (segment.token == segment.run.first) begin_run<S>(local, layer, segment.run, stream);
          appends_.push_back(rows);
        } else if (attends && cache_->length(local, layer) > 0) {
          reads_.push_back(rows);
        }
      }
      if (!appends_.empty()) append<S>(layer, found, stream);
      if (!reads_.empty()) cache_->attend(reads_, layer, read, stream);
    }
  }

  /// Whether an own part may have rows that it sees nothing for: it has no tokens of a sequence yet.
  bool is_empty_before(std::size_t place, int layer) const {
    return std::any_of(entries_.begin(), entries_.end(), [&](const Entry &entry) {
      return cache_->length(entry.state->local[place], layer) == 0;
    });
  }

  template <Element S>
  void append(int layer, const AttentionTensors<S> &tensors, Stream stream) {
    if (tensors.out.tokens > 0) return cache_->attend(appends_, layer, tensors, stream);
    if (tensors.q.tokens > 0)
      return cache_->append(appends_, layer, tensors.q, tensors.k, tensors.v, stream);
    cache_->append(appends_, layer, tensors.k, tensors.v, stream);
  }

  /// Of neighbouring rows of the call together.
  template <Element S>
  void merge(const AttentionTensors<S> &tensors, Stream stream) {
    TokenRange rows;
    const auto merge_rows = [&] {
      if (rows.last > rows.first) partials_.template merge<S>(rows, tensors.out, tensors.lse, stream);
    };
    for (const Entry &entry : entries_) {
      if (entry.first_row != rows.last) {
        merge_rows();
        rows.first = entry.first_row;
      }
      rows.last = entry.first_row + entry.tokens;
    }
    merge_rows();
  }

  // ---- where parts stand

  /// The next token of a part is the first of a run.
  template <Element S>
  void begin_run(SequenceId local, int layer, const detail::ContextRun &run, Stream stream) {
    if (parts_ == 1) return;
    cache_->template pack<S>(local, layer, stream);
    cache_->continue_at(local, layer, run.first, stream);
  }

  /// Packs the last run of each own part once there are `residual` tokens behind it, `before` and
  /// `after` being the tokens of a layer. Earlier ones were packed when the next began.
  template <Element S>
  void pack_runs(State &state, int layer, Index before, Index after, Stream stream) {
    if (parts_ == 1 || before == after) return;
    const Index residual = cache_->options().residual;
    const auto &runs = state.runs.all();
    for (std::size_t i = 0; i < own_.size(); ++i) {
      const auto last = std::find_if(runs.rbegin(), runs.rend(), [&](const detail::ContextRun &run) {
        return run.part == own_[i] && run.first < after;
      });
      if (last == runs.rend()) continue;
      const Index due = last->end() + residual;
      if (before < due && due <= after) cache_->template pack<S>(state.local[i], layer, stream);
    }
  }

  /// After a cut behind `tokens` tokens. Where it went through a page, what is left of its run would be
  /// no whole pages: the run ends here, as all ranks must know.
  void end_at(State &state, Index tokens, Stream stream) {
    std::byte closes{0};
    if (parts_ > 1 && tokens > 0) {
      const detail::ContextRun run = state.runs.all()[state.runs.find(tokens - 1)];
      for (int layer = 0; is_own(run.part) && layer < layers(); ++layer) {
        const SequenceId local = state.local[own(run.part)];
        const Index at_its_end = cache_->tail(local, layer) + run.end() - tokens;
        if (at_its_end % cache_->options().page_tokens != 0) closes = std::byte{1};
      }
    }
    if (parts_ > 1) {
      std::vector<std::byte> all(static_cast<std::size_t>(transport_->ranks()));
      transport_->all_gather(std::span<const std::byte>(&closes, 1), all);
      for (const std::byte other : all) closes |= other;
    }
    state.runs.truncate(tokens, closes != std::byte{0});
    state.lengths.assign(seen_.size(), tokens);
    stand_at(state, tokens, stream);
  }

  /// The part whose run goes on behind `tokens` tokens goes on there.
  void stand_at(State &state, Index tokens, Stream stream) {
    if (parts_ == 1) return;
    for (std::size_t i = 0; i < own_.size(); ++i) {
      for (int layer = 0; layer < layers(); ++layer) {
        if (tokens > 0 && state.runs.all()[state.runs.find(tokens - 1)].part != own_[i]) continue;
        cache_->continue_at(state.local[i], layer, tokens, stream);
      }
    }
  }

  Cache *cache_;
  Transport *transport_;
  int parts_;
  std::vector<int> own_;
  detail::RunSizes sizes_{};
  std::map<std::uint64_t, State> states_;
  std::uint64_t next_ = 1;
  bool shared_ = false;      // all ranks have the codings of part 0
  Index to_learn_ = 0;       // tokens that codings are learnt from
  std::vector<Index> seen_;  // such tokens that part 0 has had, in each layer

  // Of the call in progress.
  std::vector<Entry> entries_;
  std::vector<std::vector<Segment>> waves_;
  std::vector<SequenceTokens> appends_, reads_;
  detail::PartialShape shape_;
  detail::ContextPartials<Stream, Transport> partials_;
};

}  // namespace squat
