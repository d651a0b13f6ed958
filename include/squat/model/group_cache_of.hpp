#pragma once

// A group's cache made of one of a type.

#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include "squat/cache/attention_tensors.hpp"
#include "squat/cache/kv_cache.hpp"
#include "squat/core/any_tensor.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/model/group_cache.hpp"

namespace squat::inline SQUAT_API_NAMESPACE {

/// Cache: a KVCache, or its base. Stream: of its backend.
template <class Cache, class Stream>
class GroupCacheOf final : public GroupCache {
 public:
  template <class... Arguments>
  explicit GroupCacheOf(Arguments &&...arguments) : cache_(std::forward<Arguments>(arguments)...) {}

  const Options &options() const override { return cache_.options(); }
  int key_bits() const override { return cache_.key_bits(); }
  int value_bits() const override { return cache_.value_bits(); }

  SequenceId add_sequence() override { return cache_.add_sequence(); }
  void remove_sequence(SequenceId sequence) override { cache_.remove_sequence(sequence); }
  SequenceId fork(SequenceId parent, Index tokens, AnyStream stream) override {
    return cache_.fork(parent, tokens, of(stream));
  }

  std::unique_ptr<PreparedReorder> prepare_reorder(std::span<const SequenceId> sequences,
                                                   std::span<const SequenceId> parents,
                                                   AnyStream stream) override {
    return std::make_unique<Reorder>(cache_, cache_.prepare_reorder(sequences, parents, of(stream)));
  }

  void check_truncate(SequenceId sequence, Index tokens) const override {
    cache_.check_truncate(sequence, tokens);
  }
  void truncate(SequenceId sequence, Index tokens, AnyStream stream) override {
    cache_.truncate(sequence, tokens, of(stream));
  }
  void prepare_shift(SequenceId sequence, Index first, Index last, Index by, AnyStream stream) override {
    cache_.prepare_shift(sequence, first, last, by, of(stream));
  }
  void shift(SequenceId sequence, Index first, Index last, Index by, AnyStream stream) override {
    cache_.shift(sequence, first, last, by, of(stream));
  }

  void save(SequenceId sequence, AnySink out, const SaveOptions &how, AnyStream stream) override {
    cache_.save(sequence, out, how, of(stream));
  }
  SequenceId load(AnySource in, const SnapshotProgress &progress, AnyStream stream) override {
    return cache_.load(in, progress, of(stream));
  }
  void save_codings(AnySink out, const SnapshotProgress &progress, AnyStream stream) override {
    cache_.save_codings(out, progress, of(stream));
  }
  void load_codings(AnySource in, const SnapshotProgress &progress, AnyStream stream) override {
    cache_.load_codings(in, progress, of(stream));
  }

  void attend(Batch batch, int layer, const AnyAttentionTensors &tensors, AnyStream stream) override {
    with_tensors(tensors, [&](const auto &typed) { cache_.attend(batch, layer, typed, of(stream)); });
  }
  void draft(Batch batch, int layer, const AnyAttentionTensors &tensors, std::span<const Index> parents,
             AnyStream stream) override {
    with_tensors(tensors, [&](const auto &typed) {
      if constexpr (Cache::drafts) {
        cache_.draft(batch, layer, typed, parents, of(stream));
      } else {
        throw Error("squat: the backend knows no drafts");
      }
    });
  }
  void append(Batch batch, int layer, AnyTensor q, AnyTensor k, AnyTensor v, AnyStream stream) override {
    with_element(k.type(), [&]<class S>() {
      const auto queries = q.as<const S>();
      if (queries.tokens > 0)
        return cache_.append(batch, layer, queries, k.as<const S>(), v.as<const S>(), of(stream));
      cache_.append(batch, layer, k.as<const S>(), v.as<const S>(), of(stream));
    });
  }
  void dequantize(SequenceId sequence, int layer, AnyTensor k, AnyTensor v, AnyStream stream) override {
    with_element(k.type(), [&]<class S>() {
      cache_.dequantize(sequence, layer, k.as<S>(), v.as<S>(), of(stream));
    });
  }

  void reset_learning(AnyStream stream) override { cache_.reset_learning(of(stream)); }
  Prior statistics() const override { return cache_.statistics(); }

  Index length(SequenceId sequence) const override { return cache_.length(sequence); }
  Index length(SequenceId sequence, int layer) const override { return cache_.length(sequence, layer); }
  std::size_t page_bytes(int layer) const override { return cache_.page_bytes(layer); }
  std::size_t free_pages() const override { return cache_.free_pages(); }
  std::size_t pages_due(Batch batch) const override { return cache_.pages_due(batch); }
  FreedPages freed_if_removed(SequenceId sequence) const override {
    return cache_.freed_if_removed(sequence);
  }
  MemoryReport memory_report() const override { return cache_.memory_report(); }

  Index steps_to_replay([[maybe_unused]] Batch batch) const override {
    if constexpr (on_device) return cache_.steps_to_replay(batch);
    return 0;
  }
  void check_steps([[maybe_unused]] Batch batch, [[maybe_unused]] Index steps) const override {
    if constexpr (on_device) {
      cache_.check_steps(batch, steps);
    } else {
      throw Error("squat: steps are captured on devices alone");
    }
  }
  void advance(Batch batch, Index steps, AnyStream stream) override {
    if constexpr (on_device) {
      cache_.advance(batch, steps, of(stream));
    } else {
      check_steps(batch, steps);
    }
  }
  void check(AnyStream stream) const override {
    if constexpr (on_device) cache_.check(of(stream));
  }

 private:
  class Reorder final : public PreparedReorder {
   public:
    Reorder(Cache &cache, typename Cache::PreparedReorder plan)
        : cache_(cache), plan_(std::move(plan)) {}
    void commit(AnyStream stream) override { cache_.commit_reorder(plan_, of(stream)); }

   private:
    Cache &cache_;
    typename Cache::PreparedReorder plan_;
  };

  /// Calls run(tensors) with them as they are.
  template <class Run>
  static void with_tensors(const AnyAttentionTensors &any, Run &&run) {
    with_element(any.q.type(), [&]<class S>() {
      run(AttentionTensors<S>{.q = any.q.as<const S>(),
                              .k = any.k.as<const S>(),
                              .v = any.v.as<const S>(),
                              .out = any.out.as<S>(),
                              .lse = any.lse,
                              .causal = any.causal});
    });
  }

  static constexpr bool on_device = std::is_pointer_v<Stream>;
  static Stream of(AnyStream stream) {
    if constexpr (on_device) return static_cast<Stream>(stream);
    return Stream{};
  }

  Cache cache_;
};

}  // namespace squat::inline SQUAT_API_NAMESPACE
