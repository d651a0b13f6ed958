#pragma once

// The cache of a whole model.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "squat/cache/attention_tensors.hpp"
#include "squat/cache/check.hpp"
#include "squat/cache/memory_report.hpp"
#include "squat/cache/page_budget.hpp"
#include "squat/cache/sequence_table.hpp"
#include "squat/cache/sequence_tokens.hpp"
#include "squat/cache/snapshot/streams.hpp"
#include "squat/coding/prior.hpp"
#include "squat/core/any_tensor.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"
#include "squat/model/group_cache.hpp"
#include "squat/model/layer_map.hpp"
#include "squat/model/make_group.hpp"
#include "squat/model/model_options.hpp"
#include "squat/model/model_snapshot.hpp"

namespace squat::inline SQUAT_API_NAMESPACE {

/// The keys and values of all layers of a model: a KVCache for each group of layers of one shape and
/// width, chosen at run time, behind one set of sequences. Its calls are those of KVCache, with the
/// model's layer numbers; a call for all layers, such as fork() or truncate(), happens in all groups or
/// in none. Errors are KVCache's; where one names a sequence, a group may know it by another number.
///
/// Streams are those of the backend, see AnyStream. One thread at a time may call it.
class ModelCache {
  // As in KVCache.
  template <class S>
  using In = TensorView<const std::remove_const_t<S>>;
  template <class S>
  using Out = TensorView<std::remove_const_t<S>>;

 public:
  using Batch = std::span<const SequenceTokens>;  ///< the sequences of a call

  /// make: of what backend the groups are, see cpu_group.hpp and make_group.hpp. Throws Error for layers
  /// that are not named exactly once, and for options that KVCache does not take.
  ModelCache(const ModelOptions &options, const MakeGroup &make)
      : layers_(options), budget_(std::make_shared<PageBudget>(options.max_page_bytes)) {
    checks::memory_or_error([&] {
      for (const LayerGroup &group : options.groups) {
        Options of_group = group.options;
        const auto layers = static_cast<int>(group.layers.size());
        if (of_group.layers != 0 && of_group.layers != layers)
          throw_invalid("groups.options.layers", of_group.layers, "0, or how many layers the group has,",
                        layers);
        of_group.layers = layers;
        of_group.page_budget = budget_;
        if (!of_group.parallel) of_group.parallel = options.parallel;
        groups_.push_back(make(of_group, options.exact_rows, group.key_bits, group.value_bits));
      }
    });
    if (groups_.empty()) throw_invalid("groups", "empty", "at least one group");
  }

  /// Of the model, those without keys too.
  int layers() const { return layers_.layers(); }

  // ---- groups

  /// How many there are.
  std::size_t groups() const { return groups_.size(); }
  /// In the order of ModelOptions::groups.
  const GroupCache &group(std::size_t index) const { return *groups_.at(index); }
  /// The group that a layer's keys are in. Throws Error for a layer that sees none.
  const GroupCache &group_of(int layer) const {
    return *groups_[static_cast<std::size_t>(layers_.find(layer).group)];
  }

  // ---- sequences

  /// An empty sequence.
  SequenceId add_sequence() {
    return add([](GroupCache &group, std::size_t) { return group.add_sequence(); });
  }

  /// Its handle is never good again.
  void remove_sequence(SequenceId sequence) {
    remove(find(sequence));
    sequences_.remove(sequence);
  }

  /// A new sequence with the first `tokens` tokens of another, 0 to length(parent). See KVCache.
  SequenceId fork(SequenceId parent, Index tokens, AnyStream stream = {}) {
    check_truncate(parent, tokens);
    const Members &from = find(parent);
    return add([&](GroupCache &group, std::size_t i) { return group.fork(from[i], tokens, stream); });
  }
  /// The same with all that are present in every layer.
  SequenceId fork(SequenceId parent) { return fork(parent, length(parent)); }

  /// sequences[i] becomes what parents[i] was before the call. See KVCache.
  void reorder(std::span<const SequenceId> sequences, std::span<const SequenceId> parents,
               AnyStream stream = {}) {
    std::vector<std::unique_ptr<GroupCache::PreparedReorder>> prepared;
    checks::memory_or_error([&] {
      for (std::size_t i = 0; i < groups_.size(); ++i) {
        prepared.push_back(
            groups_[i]->prepare_reorder(in_group(sequences, i), in_group(parents, i), stream));
      }
    });
    for (const auto &of_group : prepared) of_group->commit(stream);
  }

  /// Keeps the first `tokens` tokens of a sequence, 0 to its length.
  void truncate(SequenceId sequence, Index tokens, AnyStream stream = {}) {
    check_truncate(sequence, tokens);
    for_each(sequence, [&](GroupCache &group, SequenceId id) { group.truncate(id, tokens, stream); });
  }

  /// Drops the tokens [first, last) of a sequence and moves what follows by `by` positions. See KVCache.
  void shift(SequenceId sequence, Index first, Index last, Index by, AnyStream stream = {}) {
    const Index most = length(sequence);
    if (last < 0 || last > most) throw_invalid("last", last, "0 to the length of the sequence,", most);
    for_each(sequence, [&](GroupCache &group, SequenceId id) {
      group.prepare_shift(id, first, last, by, stream);
    });
    for_each(sequence,
             [&](GroupCache &group, SequenceId id) { group.shift(id, first, last, by, stream); });
  }

  // ---- snapshots

  /// As model_snapshot.hpp describes. how.progress counts the bytes of all groups.
  template <class Out>
  void save(SequenceId sequence, Out &&out, const SaveOptions &how = {}, AnyStream stream = {}) {
    const Members &members = find(sequence);
    write_groups(out, how.progress, [&](std::size_t i, AnySink to, const SnapshotProgress &progress) {
      groups_[i]->save(members[i], std::move(to), {how.codings, progress}, stream);
    });
  }

  /// A sequence as save() wrote it, of a cache with the same groups. See KVCache.
  template <class In>
  SequenceId load(In &&in, const SnapshotProgress &progress = {}, AnyStream stream = {}) {
    SequenceId loaded;
    read_groups(in, progress, [&](auto &source, const SnapshotProgress &told, auto &&begin_group) {
      loaded = add([&](GroupCache &group, std::size_t) {
        begin_group();
        return group.load(any(source), told, stream);
      });
    });
    return loaded;
  }

  /// Writes what the layers of all groups have learnt.
  template <class Out>
  void save_codings(Out &&out, const SnapshotProgress &progress = {}, AnyStream stream = {}) {
    write_groups(out, progress, [&](std::size_t i, AnySink to, const SnapshotProgress &of_group) {
      groups_[i]->save_codings(std::move(to), of_group, stream);
    });
  }

  /// Takes what save_codings() wrote. Where a group's are refused, those of the groups before it stay
  /// taken.
  template <class In>
  void load_codings(In &&in, const SnapshotProgress &progress = {}, AnyStream stream = {}) {
    read_groups(in, progress, [&](auto &source, const SnapshotProgress &told, auto &&begin_group) {
      for (auto &group : groups_) {
        begin_group();
        group->load_codings(any(source), told, stream);
      }
    });
  }

  // ---- attention

  /// Appends and attends, or only attends, in a layer of the model; shapes are those of
  /// AttentionTensors, with the heads of the layer's group. Where nothing is appended, a layer that
  /// shares keys attends to those of the layer it shares them with.
  template <Element S>
  void attend(Batch batch, int layer, const AttentionTensors<S> &tensors, AnyStream stream = {}) {
    const detail::LayerPlace &place =
        tensors.k.tokens > 0 ? layers_.find_owner(layer) : layers_.find(layer);
    group(place).attend(in_group(batch, place), place.layer, any_of(tensors), stream);
  }

  /// Attends for a tree of proposed tokens and appends nothing, in a layer with keys of its own. See
  /// KVCache.
  template <Element S>
  void draft(Batch batch, int layer, const AttentionTensors<S> &tensors, std::span<const Index> parents,
             AnyStream stream = {}) {
    const detail::LayerPlace &place = layers_.find_owner(layer);
    group(place).draft(in_group(batch, place), place.layer, any_of(tensors), parents, stream);
  }

  /// @{
  /// By position: q [tokens, query_heads, head_dim], k [tokens, kv_heads, head_dim], v [tokens,
  /// kv_heads, value_dim], out [tokens, query_heads, value_dim]; the heads are those of the layer's
  /// group. See KVCache.
  template <class S>
  void attend(Batch batch, int layer, TensorView<S> q, std::type_identity_t<In<S>> k,
              std::type_identity_t<In<S>> v, std::type_identity_t<Out<S>> out, AnyStream stream = {}) {
    layers_.find_owner(layer);  // also for k of no tokens
    attend(batch, layer, AttentionTensors<std::remove_const_t<S>>{.q = q, .k = k, .v = v, .out = out},
           stream);
  }
  template <class S>
  void attend(Batch batch, int layer, TensorView<S> q, std::type_identity_t<Out<S>> out,
              AnyStream stream = {}) {
    attend(batch, layer, AttentionTensors<std::remove_const_t<S>>{.q = q, .out = out}, stream);
  }

  template <class S>
  void append(Batch batch, int layer, TensorView<S> k, std::type_identity_t<In<S>> v,
              AnyStream stream = {}) {
    append(batch, layer, TensorView<S>{}, k, v, stream);
  }
  template <class S>
  void append(Batch batch, int layer, TensorView<S> q, std::type_identity_t<In<S>> k,
              std::type_identity_t<In<S>> v, AnyStream stream = {}) {
    const detail::LayerPlace &place = layers_.find_owner(layer);
    group(place).append(in_group(batch, place), place.layer, q, k, v, stream);
  }
  /// @}

  /// @{
  /// The one-sequence form: every row belongs to `sequence`.
  template <class S>
  void attend(SequenceId sequence, int layer, TensorView<S> q, std::type_identity_t<In<S>> k,
              std::type_identity_t<In<S>> v, std::type_identity_t<Out<S>> out, AnyStream stream = {}) {
    attend(Batch(std::array{SequenceTokens{sequence, q.tokens}}), layer, q, k, v, out, stream);
  }
  template <class S>
  void attend(SequenceId sequence, int layer, TensorView<S> q, std::type_identity_t<Out<S>> out,
              AnyStream stream = {}) {
    attend(Batch(std::array{SequenceTokens{sequence, q.tokens}}), layer, q, out, stream);
  }
  template <class S>
  void append(SequenceId sequence, int layer, TensorView<S> k, std::type_identity_t<In<S>> v,
              AnyStream stream = {}) {
    append(Batch(std::array{SequenceTokens{sequence, k.tokens}}), layer, k, v, stream);
  }
  /// @}

  /// Writes all tokens of a sequence and layer as attention sees them: k [length(sequence, layer),
  /// kv_heads, head_dim], v the same of value_dim. See KVCache.
  template <Element S>
  void dequantize(SequenceId sequence, int layer, TensorView<S> k, std::type_identity_t<TensorView<S>> v,
                  AnyStream stream = {}) {
    const detail::LayerPlace &place = layers_.find(layer);
    group(place).dequantize(in_group(sequence, place), place.layer, k, v, stream);
  }

  // ---- learning

  /// Group by group: where one refuses, those before it have begun anew.
  void reset_learning(AnyStream stream = {}) {
    for (auto &group : groups_) group->reset_learning(stream);
  }
  /// Of a group, for LayerGroup::options.prior of another cache.
  Prior statistics(std::size_t group) const { return groups_.at(group)->statistics(); }

  // ---- steps on a device, see KVCache

  /// Steps of all layers that a graph may be replayed for; 0 where a group is on the CPU.
  Index steps_to_replay(Batch batch) const {
    Index steps = std::numeric_limits<Index>::max();
    for (std::size_t i = 0; i < groups_.size(); ++i)
      steps = std::min(steps, groups_[i]->steps_to_replay(in_group(batch, i)));
    return steps;
  }
  /// Counts replays of a captured step, in all groups before one that has outgrown it throws; a group on
  /// the CPU throws Error.
  void advance(Batch batch, Index steps, AnyStream stream = {}) {
    for (std::size_t i = 0; i < groups_.size(); ++i) groups_[i]->check_steps(in_group(batch, i), steps);
    std::exception_ptr outgrown;
    for (std::size_t i = 0; i < groups_.size(); ++i) {
      try {
        groups_[i]->advance(in_group(batch, i), steps, stream);
      } catch (...) {
        if (!outgrown) outgrown = std::current_exception();
      }
    }
    if (outgrown) std::rethrow_exception(outgrown);
  }
  /// Throws Error for what kernels have met in decode steps.
  void check(AnyStream stream = {}) const {
    for (const auto &group : groups_) group->check(stream);
  }

  // ---- what is held

  /// Tokens present in every layer that keeps keys.
  Index length(SequenceId sequence) const {
    const Members &members = find(sequence);
    Index least = groups_.front()->length(members.front());
    for (std::size_t i = 1; i < groups_.size(); ++i)
      least = std::min(least, groups_[i]->length(members[i]));
    return least;
  }
  /// Tokens present in one layer, or in the one that it shares keys with.
  Index length(SequenceId sequence, int layer) const {
    const detail::LayerPlace &place = layers_.find(layer);
    return group(place).length(in_group(sequence, place), place.layer);
  }

  /// Bytes that pages may still take.
  std::size_t free_page_bytes() const { return budget_->free_bytes(); }

  /// Bytes of the pages that the tokens of a batch take once they come to every layer: they fit if these
  /// are no more than free_page_bytes(). Of layers whose pages have sizes of their own
  /// (Allocation::model), the largest counts.
  std::size_t page_bytes_due(Batch batch) const {
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < groups_.size(); ++i)
      bytes += groups_[i]->pages_due(in_group(batch, i)) * largest_page(*groups_[i]);
    return bytes;
  }

  /// See KVCache.
  FreedPages freed_if_removed(SequenceId sequence) const {
    FreedPages sum;
    const Members &members = find(sequence);
    for (std::size_t i = 0; i < groups_.size(); ++i) {
      const FreedPages freed = groups_[i]->freed_if_removed(members[i]);
      sum.pages += freed.pages;
      sum.bytes += freed.bytes;
    }
    return sum;
  }

  /// Of all groups together; of one, group(i).memory_report() tells. packed_bits_per_element is that of
  /// a token's elements in all layers.
  MemoryReport memory_report() const {
    MemoryReport sum;
    double packed_bits = 0, packed_elements = 0, held_bits = 0, held_elements = 0;
    for (const auto &group : groups_) {
      const MemoryReport report = group->memory_report();
      const Options &options = group->options();
      const double elements =  // of a token and layer
          static_cast<double>(options.kv_heads) * (options.head_dim + options.value_dim);
      const double held = elements * static_cast<double>(report.packed_tokens + report.exact_tokens);
      sum.add(report);
      packed_bits += report.packed_bits_per_element * elements * options.layers;
      packed_elements += elements * options.layers;
      held_bits += report.total_bits_per_element * held;
      held_elements += held;
    }
    sum.packed_bits_per_element = packed_bits / packed_elements;
    sum.total_bits_per_element = held_elements > 0 ? held_bits / held_elements : 0;
    return sum;
  }

 private:
  using Members = std::vector<SequenceId>;  // a sequence's name in each group

  GroupCache &group(const detail::LayerPlace &place) const {
    return *groups_[static_cast<std::size_t>(place.group)];
  }

  template <class S>
  static AnyAttentionTensors any_of(const AttentionTensors<S> &tensors) {
    return {tensors.q, tensors.k, tensors.v, tensors.out, tensors.lse, tensors.causal};
  }

  static std::size_t largest_page(const GroupCache &group) {
    std::size_t largest = 0;
    for (int layer = 0; layer < group.options().layers; ++layer)
      largest = std::max(largest, group.page_bytes(layer));
    return largest;
  }

  // ---- sequences

  Members &find(SequenceId sequence) const { return sequences_.find(sequence); }

  SequenceId in_group(SequenceId sequence, const detail::LayerPlace &place) const {
    return find(sequence)[static_cast<std::size_t>(place.group)];
  }

  /// A batch as a group knows it, until the next such call.
  Batch in_group(Batch batch, std::size_t group) const {
    return checks::memory_or_error([&] {
      batch_.assign(batch.begin(), batch.end());
      for (SequenceTokens &entry : batch_) entry.sequence = find(entry.sequence)[group];
      return Batch(batch_);
    });
  }
  Batch in_group(Batch batch, const detail::LayerPlace &place) const {
    return in_group(batch, static_cast<std::size_t>(place.group));
  }

  std::vector<SequenceId> in_group(std::span<const SequenceId> sequences, std::size_t group) const {
    std::vector<SequenceId> named;
    for (const SequenceId sequence : sequences) named.push_back(find(sequence)[group]);
    return named;
  }

  template <class Run>
  void for_each(SequenceId sequence, Run &&run) {
    const Members &members = find(sequence);
    for (std::size_t i = 0; i < groups_.size(); ++i) run(*groups_[i], members[i]);
  }

  void check_truncate(SequenceId sequence, Index tokens) const {
    const Index most = length(sequence);
    if (tokens < 0 || tokens > most)
      throw_invalid("tokens", tokens, "0 to the length of the sequence,", most);
    const Members &members = find(sequence);
    for (std::size_t i = 0; i < groups_.size(); ++i) groups_[i]->check_truncate(members[i], tokens);
  }

  void remove(const Members &members) {
    for (std::size_t i = 0; i < members.size(); ++i) groups_[i]->remove_sequence(members[i]);
  }

  /// A sequence of what make(group, its index) adds to each group, or of none.
  template <class Make>
  SequenceId add(Make &&make) {
    return checks::memory_or_error([&] {
      sequences_.reserve();
      auto members = std::make_unique<Members>();
      members->reserve(groups_.size());
      try {
        for (std::size_t i = 0; i < groups_.size(); ++i) members->push_back(make(*groups_[i], i));
      } catch (...) {
        remove(*members);
        throw;
      }
      return sequences_.add(std::move(members));
    });
  }

  // ---- snapshots

  /// Tells of the bytes of a group and of those before it.
  static SnapshotProgress add_up(const SnapshotProgress &progress, std::uint64_t &before,
                                 std::uint64_t &bytes) {
    return [&progress, &before, &bytes](std::uint64_t so_far) {
      bytes = so_far;
      if (progress) progress(before + bytes);
    };
  }

  template <class Out, class Write>
  void write_groups(Out &out, const SnapshotProgress &progress, Write &&write) {
    checks::memory_or_error([&] {
      detail::with_sink(out, [&](auto &sink) {
        const auto header = detail::ModelSnapshotHeader::bytes(groups_.size());
        sink.write(header);
        std::uint64_t before = header.size(), bytes = 0;
        const SnapshotProgress of_group = add_up(progress, before, bytes);
        for (std::size_t i = 0; i < groups_.size(); ++i) {
          before += std::exchange(bytes, 0);
          write(i, AnySink{[&sink](std::span<const std::byte> piece) { sink.write(piece); }}, of_group);
        }
      });
    });
  }

  /// Calls read(source, told, begin_group) behind the header; told is the progress of the group that
  /// begin_group() begins.
  template <class In, class Read>
  void read_groups(In &in, const SnapshotProgress &progress, Read &&read) {
    checks::memory_or_error([&] {
      detail::with_source(in, [&](auto &source) {
        std::uint64_t before = check_header(source), bytes = 0;
        const SnapshotProgress told = add_up(progress, before, bytes);
        read(source, told, [&] { before += std::exchange(bytes, 0); });
      });
    });
  }

  /// Returns its bytes.
  template <class Source>
  std::uint64_t check_header(Source &source) const {
    detail::ModelSnapshotHeader::Bytes header;
    source.read(header);
    detail::ModelSnapshotHeader::check(header, groups_.size());
    return header.size();
  }

  template <class Source>
  static AnySource any(Source &source) {
    return {[&source](std::span<std::byte> piece) { source.read(piece); }};
  }

  detail::LayerMap layers_;
  std::shared_ptr<PageBudget> budget_;
  std::vector<std::unique_ptr<GroupCache>> groups_;
  detail::SequenceTable<Members> sequences_;
  mutable std::vector<SequenceTokens> batch_;  // of the call in progress
};

}  // namespace squat::inline SQUAT_API_NAMESPACE
