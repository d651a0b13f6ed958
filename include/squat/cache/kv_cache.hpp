#pragma once

// The one type an engine calls.

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "squat/cache/append_plan.hpp"
#include "squat/cache/attention_tensors.hpp"
#include "squat/cache/backend.hpp"
#include "squat/cache/batch_rows.hpp"
#include "squat/cache/cache_snapshots.hpp"
#include "squat/cache/call.hpp"
#include "squat/cache/check.hpp"
#include "squat/cache/check_call.hpp"
#include "squat/cache/count_memory.hpp"
#include "squat/cache/layer_codings.hpp"
#include "squat/cache/layer_pages.hpp"
#include "squat/cache/memory_report.hpp"
#include "squat/cache/named_once.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/padded_rows.hpp"
#include "squat/cache/reorder_plan.hpp"
#include "squat/cache/replay.hpp"
#include "squat/cache/sequence.hpp"
#include "squat/cache/sequence_copies.hpp"
#include "squat/cache/sequence_table.hpp"
#include "squat/cache/sequence_tokens.hpp"
#include "squat/cache/snapshot/streams.hpp"
#include "squat/cache/snapshot_codings.hpp"
#include "squat/cache/tail_rule.hpp"
#include "squat/core/config.hpp"
#include "squat/core/element_range.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"

namespace squat {

inline namespace SQUAT_API_NAMESPACE {
struct Cpu;  // see squat.hpp
}

/// The widths that pages come in; 16 is exact.
constexpr bool supported_bits(int bits) {
  return bits == 2 || bits == 3 || bits == 4 || bits == 8 || bits == 16;
}

/// What caches of one element type and backend have in common, whatever their widths: all of KVCache but
/// its constructor.
template <Element T, class Operations, class Stream>
class KVCacheBase {
  static_assert(BackendOperations<Operations, T, Stream>,
                "squat: the backend does not offer what BackendOperations asks for");
  static constexpr bool replayable = ReplayableOperations<Operations, Stream>;
  static constexpr bool on_device = DeviceOperations<Operations, Stream>;

  // A call's element type follows from its first tensor; the others may be
  // views of const or mutable elements.
  template <class S>
  using In = TensorView<const std::remove_const_t<S>>;
  template <class S>
  using Out = TensorView<std::remove_const_t<S>>;
  using Batch = std::span<const SequenceTokens>;

 public:
  /// make(options) returns the backend's Operations for the options in force. Bits: supported_bits().
  /// For the rest see KVCache.
  template <class Make>
  KVCacheBase(const Options &options, int key_bits, int value_bits, Make &&make)
      : key_bits_(key_bits),
        value_bits_(value_bits),
        options_(checks::resolve(options, key_bits, value_bits)),
        padded_options_(checks::pad(
            options_, Operations::padded_head_dim(std::max(options_.head_dim, options_.value_dim)))),
        padded_rows_(padded_options_.head_dim),
        operations_(make(std::as_const(padded_options_))),
        pages_(options_, key_bits == 16 ? 0 : *options_.tile_tokens),
        codings_(options_, key_bits) {
    codings_.begin(options_, operations_, pages_, Stream{});
  }

  /// The last argument of every call.
  using CallStream = Stream;

  /// Whether the backend knows draft().
  static constexpr bool drafts = DraftingOperations<Operations, Stream>;

  /// The device that it is on.
  int device() const requires on_device { return operations_.device(); }

  /// Bits of a packed key's element; 16: exact.
  int key_bits() const { return key_bits_; }
  /// Of a value's.
  int value_bits() const { return value_bits_; }

  /// The options in force, defaults filled in.
  const Options &options() const { return options_; }

  /// An empty sequence. Allocates; on failure nothing has changed. Where sequences learn for themselves
  /// it gets codings of its own, which on a device waits for it.
  SequenceId add_sequence() {
    [[maybe_unused]] const auto scope = enter({});
    return checks::memory_or_error([&] { return sequences_.add(make_sequence()); });
  }

  /// Its handle is never good again; its pages and rows are free for others, but for pages that others
  /// share, and stay the cache's. Neither allocates nor waits.
  void remove_sequence(SequenceId sequence) {
    discard(find(sequence));
    sequences_.remove(sequence);
  }

  /// Writes a sequence: its exact rows, its pages as they are and its codings, in the format of
  /// cache/snapshot.hpp, which every backend reads. out: a std::ostream, a std::vector<std::byte>, or
  /// any SnapshotSink; where it throws, it holds a part. Allocates pieces of some 1 MiB; on a device,
  /// waits for it.
  template <class Out>
  void save(SequenceId sequence, Out &&out, const SaveOptions &how = {}, Stream stream = {}) {
    [[maybe_unused]] const auto scope = enter(stream);
    Sequence &state = find(sequence);
    checks::memory_or_error([&] { snapshots(stream).save(state, out, how); });
  }

  /// A sequence as it was saved, by a cache of the same options (other limits of memory and tokens, and
  /// other parallel, do no harm). in: a std::istream, bytes, or any SnapshotSource. The snapshot's
  /// coding of a layer becomes the cache's, or the sequence's own where sequences learn for themselves,
  /// where that has not learnt; where it has, it comes beside it, as one of 4 at most, and under
  /// Allocation::model not at all, unless the sequence has no pages or it has learnt nothing. Throws
  /// Error for a snapshot of another version or other options, and for one that is truncated, altered or
  /// impossible; the cache is as it was then. Allocates as for the same tokens appended; on a device,
  /// waits for it.
  template <class In>
  SequenceId load(In &&in, const SnapshotProgress &progress = {}, Stream stream = {}) {
    [[maybe_unused]] const auto scope = enter(stream);
    return checks::memory_or_error([&] {
      std::unique_ptr<Sequence> state = make_sequence();
      SnapshotCodings taken(options_, operations_, pages_, codings_, stream);
      try {
        make_room(state->layers.size());
        snapshots(stream).load(*state, taken, in, progress, [&](const Layer &layer, std::size_t pages) {
          reserve_pages(layer, pages, stream);
        });
        publish_loaded(*state, stream);
      } catch (...) {
        discard(*state);
        taken.restore();
        throw;
      }
      return sequences_.add(std::move(state));
    });
  }

  /// Writes the codings of all layers, which another cache can begin with: see save().
  template <class Out>
  void save_codings(Out &&out, const SnapshotProgress &progress = {}, Stream stream = {}) {
    [[maybe_unused]] const auto scope = enter(stream);
    codings_.check_shared();
    checks::memory_or_error([&] { snapshots(stream).save_codings(out, progress); });
  }

  /// Takes the codings of all layers from what save_codings() wrote, unless they are there already:
  /// see load(). Throws Error where a layer has learnt another.
  template <class In>
  void load_codings(In &&in, const SnapshotProgress &progress = {}, Stream stream = {}) {
    [[maybe_unused]] const auto scope = enter(stream);
    codings_.check_shared();
    checks::memory_or_error([&] {
      SnapshotCodings taken(options_, operations_, pages_, codings_, stream);
      try {
        snapshots(stream).load_codings(taken, in, progress);
      } catch (...) {
        taken.restore();
        throw;
      }
    });
  }

  /// A new sequence that begins with the first `tokens` tokens of another in every layer: 0 to
  /// length(parent). What is packed is shared and neither copied nor coded anew, a page cut by `tokens`
  /// as well; sinks and what is kept of the tail are copied. From then on either goes its own way. It
  /// has its parent's codings: where sequences learn for themselves, what either brings teaches both
  /// until they are learnt. Takes time by the pages; allocates the exact rows and a page table; does not
  /// wait. On failure nothing has changed.
  SequenceId fork(SequenceId parent, Index tokens, Stream stream = {}) {
    [[maybe_unused]] const auto scope = enter(stream);
    const Sequence &from = find(parent);
    check_truncate(parent, tokens);
    return checks::memory_or_error([&] {
      sequences_.reserve();
      detail::SequenceCopies<Exact> copies;
      auto child = copies.add(from, tokens);
      find_layers(*child);
      for (Layer *layer : layers_) replay_.reserve_state(operations_, *layer);
      copies.make(operations_, stream);
      replay_.publish_states(operations_, pages_, layers_, stream);
      retain(*child);
      return sequences_.add(std::move(child));
    });
  }

  /// The same with all tokens that are present in every layer, length(parent).
  template <std::same_as<Stream> S = Stream>
  SequenceId fork(SequenceId parent, S stream = {}) {
    return fork(parent, length(parent), stream);
  }

  /// sequences[i] becomes what parents[i] was before the call, in every layer, as beam search continues
  /// its beams: a parent may have several children, and may be given up, kept by naming it as its own
  /// parent, or not be among `sequences` at all. Each of `sequences` is named once. Handles stay, and
  /// captured steps go on with the new tokens. What is copied and shared is what fork() copies and
  /// shares, but for one child of each parent that is given up, which takes all without a copy.
  /// Allocates, and takes time, as fork() does; does not wait. On failure nothing has changed. On a
  /// device, throws Error, once all is done, where a sequence has outgrown a graph, see advance().
  void reorder(std::span<const SequenceId> sequences, std::span<const SequenceId> parents,
               Stream stream = {}) {
    PreparedReorder plan = prepare_reorder(sequences, parents, stream);
    commit_reorder(plan, stream);
    if constexpr (replayable) {
      for (const SequenceId sequence : sequences) check_graphs(sequence);
    }
  }

  /// What prepare_reorder() has decided.
  using PreparedReorder = detail::ReorderPlan<typename Operations::Exact>;
  /// reorder()'s first half, for an engine that reorders several caches together: checks, allocates and
  /// copies.
  PreparedReorder prepare_reorder(std::span<const SequenceId> sequences,
                                  std::span<const SequenceId> parents, Stream stream = {}) {
    [[maybe_unused]] const auto scope = enter(stream);
    if (sequences.size() != parents.size())
      throw_invalid("parents.size", parents.size(), "that of sequences,", sequences.size());
    named_.begin();
    PreparedReorder plan;
    checks::memory_or_error([&] {
      for (std::size_t i = 0; i < sequences.size(); ++i) {
        Sequence &sequence = find(sequences[i]);
        named_.name("sequences", sequences[i], sequence);
        plan.add(sequence, find(parents[i]));
      }
      detail::SequenceCopies<Exact> copies;
      plan.make([&](const Sequence &parent) { return copies.add(parent, copies.all_tokens); });
      make_room(plan.heirs().size() * static_cast<std::size_t>(options_.layers));
      for (auto &heir : plan.heirs()) {
        for (Layer &layer : heir.sequence->layers) {
          replay_.reserve_state(operations_, layer);
          layers_.push_back(&layer);
        }
      }
      copies.make(operations_, stream);
    });
    return plan;
  }
  /// Its second half, before any other call: it cannot fail.
  void commit_reorder(PreparedReorder &plan, Stream stream = {}) {
    [[maybe_unused]] const auto scope = enter(stream);
    for (auto &heir : plan.heirs()) {
      if (!heir.moves) retain(*heir.tokens);
    }
    plan.exchange();
    for (auto &heir : plan.heirs()) release(*heir.tokens);
    replay_.publish_states(operations_, pages_, layers_, stream);
  }

  /// Appends k and v and attends: each query sees every token before its own,
  /// and its own. Tokens of one call see each other exact; what leaves the
  /// window is packed afterwards. q: [tokens, query_heads, head_dim]; k: [tokens, kv_heads, head_dim];
  /// v: [tokens, kv_heads, value_dim]; out: [tokens, query_heads, value_dim]; tokens: of the whole
  /// batch.
  template <class S>
  void attend(Batch batch, int layer, TensorView<S> q, std::type_identity_t<In<S>> k,
              std::type_identity_t<In<S>> v, std::type_identity_t<Out<S>> out, Stream stream = {}) {
    checks::check_tensor<S>(operations_, "k", k, q.tokens, options_.kv_heads, options_.head_dim);
    attend(batch, layer, AttentionTensors<std::remove_const_t<S>>{.q = q, .k = k, .v = v, .out = out},
           stream);
  }

  /// Attends without appending; on a device, without waiting. The queries of a sequence stand at its
  /// last positions: query i of n sees the first length - n + i + 1 tokens, as after append() of the
  /// same n tokens.
  template <class S>
  void attend(Batch batch, int layer, TensorView<S> q, std::type_identity_t<Out<S>> out,
              Stream stream = {}) {
    attend(batch, layer, AttentionTensors<std::remove_const_t<S>>{.q = q, .out = out}, stream);
  }

  /// Either of them, with what else AttentionTensors has.
  template <Element S>
  void attend(Batch batch, int layer, const AttentionTensors<S> &tensors, Stream stream = {}) {
    [[maybe_unused]] const auto scope = enter(stream);
    check_batch(batch, layer, tensors.q.tokens);
    checks::check_queries(operations_, options_, tensors);
    const bool reads = tensors.k.tokens == 0;
    if (!reads) {
      checks::check_keys(operations_, options_, tensors, tensors.q.tokens);
      if (!tensors.causal) throw_invalid("causal", false, "true where keys are appended");
    }
    with_padding(batch, tensors, stream, [&](const AttentionTensors<S> &wide) {
      if (reads) {
        read<S>(batch, layer, wide.q, {wide.out, wide.lse}, wide.causal, stream);
      } else {
        append_checked<S>(batch, layer, wide, stream);
      }
    });
  }

  /// Attends for tokens that are only proposed, and appends nothing: a tree of continuations of each
  /// sequence, as speculative decoding checks them in one call (Miao et al., SpecInfer, 2024). Each
  /// query sees what is cached and its path: itself, its parent, and so on to the root. parents, a row
  /// each: the row of the parent among the sequence's own, before it, or -1 for the roots, which stand
  /// right behind the cached tokens. Keys and queries carry the rotary position of their depth. What is
  /// accepted is appended afterwards: append() takes the rows of its path. Up to 256 tokens a sequence.
  /// Costs what a read of as many tokens does, and each row the tokens of its path besides. On a device,
  /// waits for it, to check elements, so that no graph can capture it, and rounds outputs twice.
  template <Element S>
  void draft(Batch batch, int layer, const AttentionTensors<S> &tensors, std::span<const Index> parents,
             Stream stream = {}) requires drafts {
    [[maybe_unused]] const auto scope = enter(stream);
    check_batch(batch, layer, tensors.q.tokens);
    checks::check_queries(operations_, options_, tensors);
    checks::check_keys(operations_, options_, tensors, tensors.q.tokens);
    if (!tensors.causal) throw_invalid("causal", false, "true in a draft");
    const auto rows = static_cast<std::size_t>(tensors.q.tokens);
    if (parents.size() != rows) throw_invalid("parents.size", parents.size(), "the tokens of q,", rows);
    with_padding(batch, tensors, stream, [&](const AttentionTensors<S> &wide) {
      draft_.resize(rows);
      calls_.clear();
      detail::for_each_entry(batch, [&](const SequenceTokens &entry, Index row) {
        const auto first = static_cast<std::size_t>(row), count = static_cast<std::size_t>(entry.tokens);
        checks::check_paths(parents.subspan(first, count));
        const std::span tokens = std::span(draft_).subspan(first, count);
        for (std::size_t i = 0; i < count; ++i) {
          const Index parent = parents[first + i];
          tokens[i] = {parent, parent < 0 ? 1 : tokens[static_cast<std::size_t>(parent)].depth + 1};
        }
        calls_.push_back(find(entry.sequence, layer).call(row, entry.tokens));
        calls_.back().draft = tokens;
      });
      if (calls_.empty()) return;
      if constexpr (replayable) {
        if (operations_.capturing(stream))
          throw Error("squat: stream is being captured, and a draft waits for it, to check elements");
      }
      check_elements<S>(batch, wide.q, wide.k, wide.v, stream);
      operations_.template draft<S>(calls_, wide.q, wide.k, wide.v, {wide.out, wide.lse}, stream);
    });
  }

  /// Appends k and v without attention.
  template <class S>
  void append(Batch batch, int layer, TensorView<S> k, std::type_identity_t<In<S>> v,
              Stream stream = {}) {
    using Scalar = std::remove_const_t<S>;
    append_only<Scalar>(batch, layer, AttentionTensors<Scalar>{.k = k, .v = v}, stream);
  }

  /// The same for tokens whose attention the engine computes itself: codings
  /// learn from their queries q.
  template <class S>
  void append(Batch batch, int layer, TensorView<S> q, std::type_identity_t<In<S>> k,
              std::type_identity_t<In<S>> v, Stream stream = {}) {
    using Scalar = std::remove_const_t<S>;
    checks::check_tensor<S>(operations_, "q", q, k.tokens, options_.query_heads, options_.head_dim);
    append_only<Scalar>(batch, layer, AttentionTensors<Scalar>{.q = q, .k = k, .v = v}, stream);
  }

  /// @{
  /// The one-sequence form: every row belongs to `sequence`.
  template <class S>
  void attend(SequenceId sequence, int layer, TensorView<S> q, std::type_identity_t<In<S>> k,
              std::type_identity_t<In<S>> v, std::type_identity_t<Out<S>> out, Stream stream = {}) {
    const std::array batch{SequenceTokens{sequence, q.tokens}};
    attend(Batch(batch), layer, q, k, v, out, stream);
  }

  template <class S>
  void attend(SequenceId sequence, int layer, TensorView<S> q, std::type_identity_t<Out<S>> out,
              Stream stream = {}) {
    const std::array batch{SequenceTokens{sequence, q.tokens}};
    attend(Batch(batch), layer, q, out, stream);
  }

  template <class S>
  void append(SequenceId sequence, int layer, TensorView<S> k, std::type_identity_t<In<S>> v,
              Stream stream = {}) {
    const std::array batch{SequenceTokens{sequence, k.tokens}};
    append(Batch(batch), layer, k, v, stream);
  }

  template <class S>
  void append(SequenceId sequence, int layer, TensorView<S> q, std::type_identity_t<In<S>> k,
              std::type_identity_t<In<S>> v, Stream stream = {}) {
    const std::array batch{SequenceTokens{sequence, q.tokens}};
    append(Batch(batch), layer, q, k, v, stream);
  }
  /// @}

  /// How many steps from now on, a token for each sequence of a batch, are the kernels' alone: a graph
  /// may capture such a step, and be replayed so many times before advance() has to be called. 0: the
  /// host plans the next. At most `page_tokens`. The batch's token counts are not read. Takes time by
  /// the batch's layers; neither allocates nor waits.
  Index steps_to_replay(Batch batch) const requires replayable {
    Index steps = batch.empty() || options_.keep_statistics ? 0 : options_.page_tokens;
    for (const SequenceTokens &entry : batch) {
      for (const Layer &layer : find(entry.sequence).layers) {
        if (!codings_.learning().learnt(layer.coding)) return 0;
        steps = std::min(steps, replay_.steps(operations_, layer));
      }
    }
    return steps;
  }

  /// Counts `steps` replays of a captured decode step, that is, of a graph of attend() in every layer
  /// for a batch of sequences with one token each, and acquires the pages they pack into next: call it
  /// at least once every `page_tokens` replays. Does not wait. The step must have been taken once before
  /// it was captured. The batch's token counts are not read. Throws Error, once all is counted, where a
  /// sequence has outgrown the graph, which happens each time its length doubles: capture the step anew.
  void advance(Batch batch, Index steps, Stream stream = {}) requires replayable {
    count_steps(batch, steps, stream);
    for (const SequenceTokens &entry : batch) check_graphs(entry.sequence);
  }

  /// The same, whether or not the graph is outgrown: for engines that capture anew before that matters.
  /// It does to a workspace of unpacked pages alone, which steps need where keys are packed and values
  /// are not, or the other way round.
  void count_steps(Batch batch, Index steps, Stream stream = {}) requires replayable {
    [[maybe_unused]] const auto scope = enter(stream);
    check_steps(batch, steps);
    for (int layer = 0; layer < options_.layers; ++layer) {
      find_layers(batch, layer);
      replay_.count(operations_, pages_, layers_, steps, stream);
      leave_window(stream);
    }
  }

  /// Throws the Error of arguments that advance() would throw.
  void check_steps(Batch batch, Index steps) const requires replayable {
    checks::check_range("steps", steps, 0, options_.page_tokens);
    for (const SequenceTokens &entry : batch) {
      for (const Layer &layer : find(entry.sequence).layers) {
        const Index room = replay_.room(layer);
        if (steps > room)
          throw_invalid("steps", steps, "at most what tail and next page have room for,", room);
      }
    }
  }

  /// Throws Error for what kernels have met in decode steps since the last call: elements out of range,
  /// tokens without room. Waits for the stream.
  void check(Stream stream = {}) const requires replayable {
    [[maybe_unused]] const auto scope = enter(stream);
    operations_.check(stream);
  }

  /// Writes all tokens of a sequence and layer as attention sees them: exact
  /// rows as they are, others as their codes say. k: [length(sequence, layer), kv_heads, head_dim]; v:
  /// the same, of value_dim; rows of tokens that have left an attention window are not written. On a
  /// device it does not wait, unless its workspace grows.
  template <Element S>
  void dequantize(SequenceId sequence, int layer, TensorView<S> k, std::type_identity_t<TensorView<S>> v,
                  Stream stream = {}) {
    [[maybe_unused]] const auto scope = enter(stream);
    check_layer(layer);
    Layer &tokens = find(sequence, layer);
    checks::check_keys(operations_, options_, AttentionTensors<S>{.k = k, .v = v}, tokens.length());
    checks::memory_or_error([&] {
      const TensorView<S> keys = padded_rows_.widen(padded_rows_.keys, k, stream),
                          values = padded_rows_.widen(padded_rows_.values, v, stream);
      operations_.dequantize(tokens.call(), keys, values, stream);
      padded_rows_.template narrow<S>(keys, k, stream);
      padded_rows_.template narrow<S>(values, v, stream);
    });
  }

  /// Keeps the first `tokens` tokens of a sequence in every layer. A page cut
  /// in two stays packed. Does not wait.
  void truncate(SequenceId sequence, Index tokens, Stream stream = {}) {
    [[maybe_unused]] const auto scope = enter(stream);
    check_truncate(sequence, tokens);
    find_layers(find(sequence));
    for (Layer *layer : layers_) pages_.truncate(*layer, tokens);
    replay_.publish(operations_, pages_, layers_, stream);
  }

  /// Throws Error where truncate() would, and fork().
  void check_truncate(SequenceId sequence, Index tokens) const {
    const Index most = length(sequence);
    if (tokens < 0 || tokens > most)
      throw_invalid("tokens", tokens, "0 to the length of the sequence,", most);
    for (const Layer &layer : find(sequence).layers) {
      if (layer.left() > 0 && tokens > layer.exact.sinks())
        check_in_window("tokens", tokens,
                        layer.page_views.front().before + options_.attention_window - 1);
    }
  }

  /// Drops the tokens [first, last) of a sequence in every layer and moves what
  /// follows by `by` positions, as engines do to make room in a full context:
  /// shift(sequence, keep, keep + n, -n). Packed tokens are not coded anew:
  /// their pages change the position they are turned back by. Others are
  /// turned; in 8 bits, keys are rounded once more then. The engine's next token stands `by` positions
  /// from where it would have stood. by other than 0 needs Options::rotary. Allocates a page table's
  /// growth; on a device it waits only where its workspace grows.
  void shift(SequenceId sequence, Index first, Index last, Index by, Stream stream = {}) {
    [[maybe_unused]] const auto scope = enter(stream);
    make_room_to_shift(sequence, first, last, by, stream);
    Sequence &state = find(sequence);
    for (Layer &layer : state.layers) {
      const Index sinks = layer.exact.sinks(), paged = sinks + layer.left(), tail = layer.tail_begin();
      const auto part = [&](Index begin, Index count) {
        return TokenRange{std::clamp<Index>(first - begin, 0, count),
                          std::clamp<Index>(last - begin, 0, count)};
      };
      const TokenRange of_sinks = part(0, sinks), of_tail = part(tail, layer.exact.tail());
      pages_.shift(layer, first - paged, last - paged, by, paged - (of_sinks.last - of_sinks.first));
      operations_.shift(layer.coding, layer.exact, of_sinks, of_tail, by, stream);
      layer.next_position += by;
    }
    replay_.publish(operations_, pages_, layers_, stream);
  }

  /// Throws Error where shift() would, and makes the room it needs: it cannot fail then.
  void prepare_shift(SequenceId sequence, Index first, Index last, Index by, Stream stream = {}) {
    [[maybe_unused]] const auto scope = enter(stream);
    make_room_to_shift(sequence, first, last, by, stream);
  }

  /// Packs the whole pages of a sequence's tail in a layer, however new their tokens are: those to come
  /// stand elsewhere, or there are none for now. Packs nothing while the layer's coding has not learnt.
  /// Allocates as an append does; on failure nothing has changed. Does not wait. S: of the tensors that
  /// the sequence's calls bring; on a device kernels that others need are not compiled then.
  template <Element S = T>
  void pack(SequenceId sequence, int layer, Stream stream = {}) {
    [[maybe_unused]] const auto scope = enter(stream);
    check_layer(layer);
    Layer &state = find(sequence, layer);
    if (!codings_.learning().learnt(state.coding)) return;
    checks::memory_or_error([&] {
      constexpr Index rows = 0, residual = 0;
      plan_.clear();
      plan_.add(state, rows, rows, state.coding, true, false, options_.sinks,
                {residual, options_.page_tokens});
      if (plan_.calls().front().due == 0) return;
      reserve_plan(false, stream);
      take_in<S>({}, {}, {}, {}, stream);
      layers_.assign(1, &state);
      replay_.acquire_pages(operations_, pages_, layers_, stream);
    });
  }

  /// The next token of a sequence in a layer stands at `position`, where it would have stood right
  /// behind the last: the tokens between them, before the first if there are none, are another cache's
  /// (parallel/split_context.hpp). A sequence that begins so has no sinks. What is left in the tail is
  /// packed as if it stood right before the next token: pack() first, and where the tail is no whole
  /// pages these are coded with larger errors. Attention windows and ALiBi go by the tokens of this
  /// cache alone. Does not wait; on failure nothing has changed.
  void continue_at(SequenceId sequence, int layer, Index position, Stream stream = {}) {
    [[maybe_unused]] const auto scope = enter(stream);
    constexpr Index farthest = Index{1} << 32;
    check_layer(layer);
    checks::check_range("position", position, 0, farthest);
    Layer &state = find(sequence, layer);
    make_room(1);
    checks::memory_or_error([&] { replay_.reserve_state(operations_, state); });
    state.next_position = position;
    if (state.length() == 0) state.begins_elsewhere = position > 0;
    layers_.push_back(&state);
    replay_.publish_states(operations_, pages_, layers_, stream);
  }

  /// Learning begins anew, from the tokens to come: after a warm-up with dummies, or where texts have
  /// become others. A coding that has packed nothing forgets what it has seen. One that has packed stays
  /// with the sequences that have tokens of it, their forks too, and a new one serves all others; under
  /// Allocation::model, where page sizes are the layers', there must be none. A prior counts along
  /// again. Throws Error where 4 codings of a layer are held already, and where sequences learn for
  /// themselves. Allocates; where that fails, some layers may have begun, and it can be called again. On
  /// a device, waits for it.
  void reset_learning(Stream stream = {}) {
    [[maybe_unused]] const auto scope = enter(stream);
    codings_.check_shared();
    if (!codings_.learning().learns_at_all()) return;
    checks::memory_or_error([&] { codings_.reset(options_, operations_, pages_, sequences_, stream); });
  }

  /// The statistics of queries and keys that codings have learnt from, to be
  /// another cache's Options::prior; those of its own prior are part of them.
  /// Throws Error where they are gone: without Options::keep_statistics they
  /// are dropped once a coding is learnt. Allocates the result; on a device, waits for it.
  Prior statistics() const {
    [[maybe_unused]] const auto scope = enter({});
    Prior prior(options_.layers, options_.kv_heads, padded_options_.head_dim,
                std::max(1, *options_.tile_tokens));
    codings_.for_each([&](Index coding, int) {
      if (codings_.learning().observed(coding) > 0 && !operations_.add_statistics(coding, prior)) {
        throw_invalid("keep_statistics", false, "true to read statistics that codings have learnt from");
      }
    });
    return prior;
  }

  /// Tokens present in every layer.
  Index length(SequenceId sequence) const {
    const auto &layers = find(sequence).layers;
    Index least = layers.front().length();
    for (const Layer &layer : layers) least = std::min(least, layer.length());
    return least;
  }

  /// Tokens present in one layer.
  Index length(SequenceId sequence, int layer) const {
    check_layer(layer);
    return find(sequence, layer).length();
  }

  /// Tokens of a sequence's tail in one layer: the newest, which are not packed.
  Index tail(SequenceId sequence, int layer) const {
    check_layer(layer);
    return find(sequence, layer).exact.tail();
  }

  /// Whether pages of a layer can be packed with what the cache has learnt. Throws Error where sequences
  /// learn for themselves.
  bool learnt(int layer) const {
    check_layer(layer);
    codings_.check_shared();
    return codings_.learning().learnt(codings_.own(layer));
  }

  /// Tokens that a layer's coding has to see before it packs, counted from the first that teach it; 0
  /// where codings learn nothing.
  Index tokens_to_learn() const { return codings_.learning().tokens_to_learn(); }

  /// Bytes of a page of a layer, `page_tokens` tokens of all its KV heads. The same for all layers,
  /// unless Options::allocation is model and they have learnt.
  std::size_t page_bytes(int layer) const {
    check_layer(layer);
    return operations_.page_bytes(codings_.own(layer));
  }

  /// Pages that tokens can still be packed into before max_pages or page_budget is reached; without a
  /// limit, more than memory has. Neither allocates nor waits.
  std::size_t free_pages() const { return pages_.free(); }

  /// Pages that the tokens of a batch take once they come to every layer, no more than free_pages()
  /// where the calls fit. Fewer are taken where tokens turn out to be no text. Neither allocates nor
  /// waits.
  std::size_t pages_due(Batch batch) const {
    Index pages = 0;
    for (int layer = 0; layer < options_.layers; ++layer) {
      detail::for_each_entry(batch, [&](const SequenceTokens &entry, Index) {
        const Layer &state = find(entry.sequence, layer);
        if (packs_learnt(batch, state) || packs_without_learning(entry, state))
          pages += state.due_pages(entry.tokens, options_.sinks, tail_rule());
      });
    }
    return static_cast<std::size_t>(pages);
  }

  /// What free_pages() and the memory for pages gain once a sequence is removed: the pages that no other
  /// sequence holds. Takes time by the pages; neither allocates nor waits.
  FreedPages freed_if_removed(SequenceId sequence) const {
    FreedPages freed;
    for (const Layer &layer : find(sequence).layers) {
      const std::size_t pages = pages_.held(layer).alone;
      freed.pages += pages;
      freed.bytes += pages * pages_.page_bytes(layer);
    }
    return freed;
  }

  /// What is allocated, and what of it holds tokens. Counts on the host, page by page: neither allocates
  /// nor waits, and throws nothing.
  MemoryReport memory_report() const {
    return detail::count_memory(options_, operations_, pages_, codings_, sequences_,
                                padded_rows_.bytes());
  }

 private:
  using Exact = typename Operations::Exact;
  using Layer = detail::LayerTokens<Exact>;
  using Sequence = detail::SequenceState<Exact>;

  /// Every call whose work is a device's begins with it: see DeviceOperations.
  auto enter(Stream stream) const {
    if constexpr (on_device) {
      return operations_.enter(stream);
    } else {
      return stream;
    }
  }

  // ---- checks

  void check_layer(int layer) const { checks::check_range("layer", layer, 0, options_.layers - 1); }

  void check_in_window(const char *name, Index tokens, Index least) const {
    if (tokens < least)
      throw_invalid(name, tokens,
                    "such that no tokens are needed that have left the attention window: at "
                    "least",
                    least);
  }

  /// Throws Error where captured steps of a sequence do not hold any more.
  void check_graphs(SequenceId sequence) const requires replayable {
    for (const Layer &layer : find(sequence).layers) {
      if (layer.exact.outgrown()) {
        throw Error("squat: the sequence " + std::to_string(sequence.value) +
                    " has outgrown the captured step: capture it anew");
      }
    }
  }

  /// Every sequence known and named once, and its rows among `rows`: one after another and all of
  /// them, or where the entries say.
  void check_batch(Batch batch, int layer, Index rows) {
    check_layer(layer);
    named_.begin();
    for (const SequenceTokens &entry : batch)
      named_.name("batch.sequence", entry.sequence, find(entry.sequence));
    detail::check_rows(batch, rows);
  }

  /// Of the rows that a checked batch names.
  template <Element S>
  void check_elements(Batch batch, In<S> q, In<S> k, In<S> v, Stream stream) {
    detail::for_each_run(batch, [&](Index first, Index count) {
      const auto rows = [&](const char *name, In<S> tensor) {
        return NamedTensor<S>{name, tensor.tokens > 0 ? tensor.slice(first, count) : tensor, first};
      };
      operations_.template check_elements<S>({rows("q", q), rows("k", k), rows("v", v)}, stream);
    });
  }

  Sequence &find(SequenceId sequence) const { return sequences_.find(sequence); }

  Layer &find(SequenceId sequence, int layer) const {
    return find(sequence).layers[static_cast<std::size_t>(layer)];
  }

  /// The layer of every sequence of a batch, into layers_.
  void find_layers(Batch batch, int layer) {
    make_room(batch.size());
    for (const SequenceTokens &entry : batch) layers_.push_back(&find(entry.sequence, layer));
  }

  /// Every layer of a sequence, into layers_.
  void find_layers(Sequence &sequence) {
    make_room(sequence.layers.size());
    for (Layer &layer : sequence.layers) layers_.push_back(&layer);
  }

  /// Empties layers_, with room for so many and for what is said of them.
  void make_room(std::size_t layers) {
    checks::memory_or_error([&] {
      layers_.clear();
      layers_.reserve(layers);
      replay_.reserve(layers);
    });
  }

  /// Throws Error where shift() would.
  void make_room_to_shift(SequenceId sequence, Index first, Index last, Index by, Stream stream) {
    Sequence &state = find(sequence);
    const Index most = length(sequence);
    constexpr Index farthest = Index{1} << 32;
    if (last < 0 || last > most) throw_invalid("last", last, "0 to the length of the sequence,", most);
    checks::check_range("first", first, 0, last);
    checks::check_range("by", by, -farthest, farthest);
    if (by != 0 && options_.rotary.empty()) throw_invalid("by", by, "0 without a rotary table");
    for (const Layer &layer : state.layers) {
      if (layer.left() > 0) check_in_window("first", first, layer.page_views.front().before);
    }
    find_layers(state);
    checks::memory_or_error([&] {
      for (Layer &layer : state.layers) {
        layer.reserve_pages(1);
        replay_.reserve_shift(operations_, layer, stream);
      }
    });
  }

  // ---- sequences

  std::unique_ptr<Sequence> make_sequence() {
    auto state = std::make_unique<Sequence>();
    state->layers.resize(static_cast<std::size_t>(options_.layers));
    sequences_.reserve();
    int layer = 0;
    try {
      for (; layer < options_.layers; ++layer) {
        Layer &tokens = state->layers[static_cast<std::size_t>(layer)];
        tokens.layer = layer;
        tokens.coding = codings_.for_sequence(operations_, pages_, layer);
      }
    } catch (...) {
      while (layer-- > 0)
        codings_.release(operations_, state->layers[static_cast<std::size_t>(layer)].coding);
      throw;
    }
    return state;
  }

  // ---- snapshots

  using SnapshotCodings = detail::SnapshotCodings<T, Operations, Stream>;

  detail::CacheSnapshots<T, Operations, Stream> snapshots(Stream stream) {
    return {padded_options_, key_bits_, value_bits_, operations_, pages_, codings_, stream};
  }

  /// Makes sure of pages, those acquired ahead if there are no others.
  void reserve_pages(const Layer &layer, std::size_t count, Stream stream) {
    if (!pages_.try_reserve(layer, count)) release_pages_ahead(stream);
    pages_.reserve(layer, count);
  }

  /// Tells a backend with kernels of its own of a sequence that came from outside.
  void publish_loaded(Sequence &state, Stream stream) {
    find_layers(state);
    for (Layer &layer : state.layers) replay_.reserve_shift(operations_, layer, stream);
    replay_.publish(operations_, pages_, layers_, stream);
  }

  // ---- reading

  template <Element S>
  void read(Batch batch, int layer, TensorView<const S> q, const AttentionOutput<S> &out, bool causal,
            Stream stream) {
    calls_.clear();
    detail::for_each_entry(batch, [&](const SequenceTokens &entry, Index row) {
      auto call = find(entry.sequence, layer).call(row, entry.tokens);
      call.causal = causal;
      if (!causal && call.past == 0)
        throw_invalid("causal", false, "true while there are no tokens in the sequence",
                      entry.sequence.value);
      if (causal) {
        if (call.tokens > call.past) {
          throw_invalid("batch.tokens", call.tokens, "at most the length of the sequence, which is",
                        call.past);
        }
        call.past -= call.tokens;
      }
      calls_.push_back(call);
    });
    if (calls_.empty()) return;
    operations_.template attend<S>(calls_, q, out, stream);
  }

  // ---- appending

  TailRule<> tail_rule() const { return {options_.residual, options_.page_tokens}; }

  template <Element S>
  void append_only(Batch batch, int layer, const AttentionTensors<S> &tensors, Stream stream) {
    [[maybe_unused]] const auto scope = enter(stream);
    check_batch(batch, layer, tensors.k.tokens);
    checks::check_keys(operations_, options_, tensors, tensors.k.tokens);
    with_padding(batch, tensors, stream, [&](const AttentionTensors<S> &wide) {
      append_checked<S>(batch, layer, wide, stream);
    });
  }

  template <Element S>
  void append_checked(Batch batch, int layer, const AttentionTensors<S> &tensors, Stream stream) {
    const auto &[q, k, v, out, lse, causal] = tensors;
    if (!take_step<S>(batch, layer, q, k, v, {out, lse}, stream))
      append_planned<S>(batch, layer, q, k, v, {out, lse}, stream);
  }

  /// Calls run(tensors) with those of a checked call, heads as wide as kernels take them. Out of memory
  /// is an Error.
  template <Element S, class Run>
  void with_padding(Batch batch, const AttentionTensors<S> &tensors, Stream stream, Run &&run) {
    checks::memory_or_error([&] {
      const AttentionTensors<S> wide = padded_rows_.widen(tensors, stream);
      run(wide);
      if (wide.out.data == tensors.out.data) return;
      detail::for_each_run(batch, [&](Index first, Index count) {
        padded_rows_.template narrow<S>(wide.out.slice(first, count), tensors.out.slice(first, count),
                                        stream);
      });
    });
  }

  /// A decode step, where the backend takes it on its own. Returns whether it did.
  template <Element S>
  bool take_step(Batch batch, int layer, In<S> q, In<S> k, In<S> v, const AttentionOutput<S> &out,
                 Stream stream) {
    if constexpr (!replayable) return false;
    find_layers(batch, layer);
    rows_.clear();
    rows_.reserve(batch.size());
    detail::for_each_entry(batch, [&](const SequenceTokens &, Index row) { rows_.push_back(row); });
    bool step = q.tokens == 0 || !options_.keep_statistics;
    for (std::size_t i = 0; i < batch.size(); ++i)
      step = step && batch[i].tokens == 1 && codings_.learning().learnt(layers_[i]->coding);
    const bool taken = replay_.template take_step<S>(operations_, pages_, layers_, rows_, step, layer, q,
                                                     k, v, out, stream);
    if (taken) leave_window(stream);
    return taken;
  }

  template <Element S>
  void append_planned(Batch batch, int layer, In<S> q, In<S> k, In<S> v, const AttentionOutput<S> &out,
                      Stream stream) {
    const bool attends = out.rows.tokens > 0;
    check_elements<S>(batch, q, k, v, stream);
    plan(batch, layer, q.tokens > 0, attends, stream);
    const std::span calls = std::as_const(plan_).calls();
    if (calls.empty()) return;
    codings_.learning().template observe<S>(operations_, calls, q, k, v, stream, [&] {
      plan_without_learning(layer, attends, stream);
      take_in<S>(q, k, v, out, stream);
    });
    layers_.clear();
    for (std::size_t i = 0; i < calls.size(); ++i) {
      codings_.change(operations_, *plan_.layers()[i], calls[i].coding);
      if (calls[i].learnt) layers_.push_back(plan_.layers()[i]);
    }
    replay_.acquire_pages(operations_, pages_, layers_, stream);
    leave_window(stream);
  }

  /// Pages that no query to come sees leave the layers in layers_.
  void leave_window(Stream stream) {
    if (options_.attention_window == 0) return;
    const auto stays = [&](Layer *layer) {
      const Index shortest = layer->length() - options_.rollback_tokens;
      return !pages_.leave_before(*layer, shortest + 1 - options_.attention_window);
    };
    layers_.erase(std::remove_if(layers_.begin(), layers_.end(), stays), layers_.end());
    if (!layers_.empty()) replay_.publish(operations_, pages_, layers_, stream);
  }

  /// Appends as planned, or leaves sequences as they were where the engine's threads throw.
  template <Element S>
  void take_in(In<S> q, In<S> k, In<S> v, const AttentionOutput<S> &out, Stream stream) {
    pages_.add(plan_);
    try {
      operations_.template append<S>(std::as_const(plan_).calls(), q, k, v, out, stream);
    } catch (...) {
      pages_.take_back(plan_);
      throw;
    }
  }

  /// Decides what an append will do, and allocates all that it needs. Throws
  /// before anything changes.
  void plan(Batch batch, int layer, bool queries, bool attends, Stream stream) {
    plan_.clear();
    detail::for_each_entry(batch, [&](const SequenceTokens &entry, Index row) {
      Layer &state = find(entry.sequence, layer);
      bool learnt = packs_learnt(batch, state);
      Index coding = state.coding;
      if (!learnt && packs_without_learning(entry, state)) {
        coding = codings_.without_learning(operations_, pages_, layer, stream);
        learnt = true;
      }
      const bool observed = entry.learn && codings_.learning().observes(coding, queries);
      plan_.add(state, row, entry.tokens, coding, learnt, observed, options_.sinks, tail_rule());
      if (codings_.sized_by_layer()) pages_.set_page_bytes(coding, operations_.page_bytes(coding));
    });
    reserve_plan(attends, stream);
  }

  /// Whether pages of a sequence can be packed by the end of a call, with what its coding has learnt
  /// then.
  bool packs_learnt(Batch batch, const Layer &state) const {
    return codings_.learning().learnt(state.coding) ||
           codings_.learning().learnt(state.coding, tokens_of(batch, state.layer, state.coding));
  }
  /// Whether they are packed with what is there, for the sequence has waited long enough.
  bool packs_without_learning(const SequenceTokens &entry, const Layer &state) const {
    return codings_.learning().waited(state.length(), entry.tokens);
  }

  void reserve_plan(bool attends, Stream stream) {
    if (plan_.calls().empty()) return;
    if (!pages_.try_reserve(plan_)) release_pages_ahead(stream);
    make_room(plan_.calls().size());
    pages_.reserve(plan_);
    operations_.reserve(std::as_const(plan_).calls(), attends, stream);
  }

  /// Plans anew for codings that were to learn by now and have not, for their tokens were no text.
  void plan_without_learning(int layer, bool attends, Stream stream) {
    bool changed = false;
    for (SequenceCall<Exact> &call : plan_.calls()) {
      if (!call.learnt || codings_.learning().learnt(call.coding)) continue;
      changed = true;
      if (codings_.learning().had_its_chance(call.past + call.tokens)) {
        call.coding = codings_.without_learning(operations_, pages_, layer, stream);
      } else {
        call.learnt = false;
        call.due = 0;
      }
    }
    if (changed) reserve_plan(attends, stream);
  }

  /// Gives back the pages that were acquired ahead, which are needed now.
  void release_pages_ahead(Stream stream) {
    sequences_.for_each([&](Sequence &sequence) {
      find_layers(sequence);
      replay_.release_pages(operations_, pages_, layers_, stream);
    });
  }

  /// Tokens of a batch that `coding` may learn from.
  Index tokens_of(Batch batch, int layer, Index coding) const {
    if (!codings_.learning().observes(coding, false)) return 0;
    Index tokens = 0;
    for (const SequenceTokens &entry : batch) {
      if (entry.learn && find(entry.sequence, layer).coding == coding) tokens += entry.tokens;
    }
    return tokens;
  }

  // ---- what sequences hold

  /// A sequence's tables name pages and codings, and hold them from now on.
  void retain(const Sequence &sequence) {
    for (const Layer &layer : sequence.layers) {
      pages_.retain(layer);
      codings_.retain(layer.coding);
    }
  }

  /// It holds them no more. There are none where its tokens were moved.
  void release(Sequence &sequence) {
    for (Layer &layer : sequence.layers) {
      if (layer.coding == Layer::no_coding) continue;
      pages_.release(layer);
      codings_.release(operations_, layer.coding);
    }
  }

  /// The same of a sequence that goes, with the pages acquired ahead for it.
  void discard(Sequence &sequence) {
    release(sequence);
    for (Layer &layer : sequence.layers) pages_.release_ready(layer);
  }

  int key_bits_, value_bits_;
  Options options_;
  Options padded_options_;  // with heads as wide as kernels take them
  detail::PaddedRows<typename Operations::Padding, Stream> padded_rows_;
  Operations operations_;
  detail::LayerPages<typename Operations::Memory, Exact> pages_;
  detail::LayerCodings<Operations, Stream> codings_;
  detail::SequenceTable<Sequence> sequences_;
  detail::NamedOnce named_;
  detail::AppendPlan<Exact> plan_;  // of the call in progress
  std::vector<SequenceCall<Exact>> calls_;
  std::vector<DraftToken> draft_;  // of the call in progress, a row each
  std::vector<Layer *> layers_;
  std::vector<Index> rows_;  // of a step's sequences
  [[no_unique_address]] detail::ReplayOf<Operations, Stream> replay_{options_};
};

/// The keys and values of every past token of a set of sequences, packed to
/// KeyBits and ValueBits bits.
///
/// The first `sinks` tokens of a sequence stay exact, as T; at least its newest `residual`
/// tokens are not packed either, its tail (TailCoding). Each time `residual + page_tokens` tokens are
/// in it, the oldest `page_tokens` of them become a page. Codings that learn from
/// queries begin to pack when a layer has seen `statistics_tokens` tokens (and
/// at least what fills the first page); exactly that many count, so pages do
/// not depend on the pieces in which tokens arrive (under Allocation::layer on an exact tail: attention
/// is weighed over rows as they wait). Options::learning says whose tokens, SequenceTokens::learn which
/// of them.
///
/// All pages of a sequence and layer are of one coding. Beside the one that new sequences get, a layer
/// has those of sequences that were there before reset_learning() or were loaded with another, 4 at most
/// with it, each as long as there are such sequences; and one that has learnt nothing, for sequences
/// that could not wait. memory_report() counts them as bases.
///
/// T: float, half or bfloat16. Bits: 2, 3, 4 or 8; 16 keeps exact half-precision
/// pages, the baseline.
///
/// Tensors are `[tokens, heads, head_dim]`, of values and outputs `[tokens, heads, value_dim]`, in
/// float, half or bfloat16, whatever T is. A batched call takes several sequences, each once, their rows
/// one after another or where SequenceTokens says. Errors are `squat::Error`, name the argument and the
/// limit, and leave the cache as it was. One thread at a time may call a cache.
///
/// A call allocates where what it adds needs more memory than there is: pages come in slabs, a tail and
/// the workspaces grow. A decode step that fits allocates nothing.
///
/// A backend on a device takes tensors in its memory and, as the last argument of
/// every call, the stream that the call's work is put into. The device is the one that is current when
/// the cache is made: every call makes it current and then the caller's again, and throws Error for
/// tensors and streams of another. Calls on several streams are the engine's to order. Decode steps (a
/// token a sequence, behind the prompt) do not wait for the device, and what their kernels meet is
/// thrown by check(). Other calls that append wait for it once, to check their elements, and again where
/// codings are learnt or a workspace grows.
template <Element T, int KeyBits, int ValueBits = KeyBits, class Backend = Cpu>
class KVCache : public KVCacheBase<T, typename Backend::template Operations<T, KeyBits, ValueBits>,
                                   typename Backend::Stream> {
  static_assert(supported_bits(KeyBits) && supported_bits(ValueBits),
                "squat: KeyBits and ValueBits are 2, 3, 4, 8 or 16");

 public:
  /// Throws Error for options that do not fit each other, before anything is allocated. Allocates
  /// little: memory for tokens comes with them. On a device, waits for it.
  explicit KVCache(const Options &options)
      : KVCache::KVCacheBase(options, KeyBits, ValueBits, [](const Options &in_force) {
          return Backend::template make_operations<T, KeyBits, ValueBits>(in_force);
        }) {}
};

}  // namespace squat
