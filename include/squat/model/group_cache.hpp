#pragma once

// The cache of a group of layers, whatever its widths and backend.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "squat/cache/memory_report.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/sequence_tokens.hpp"
#include "squat/cache/snapshot/streams.hpp"
#include "squat/coding/prior.hpp"
#include "squat/core/any_tensor.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"

namespace squat::inline SQUAT_API_NAMESPACE {

/// A stream of a backend on a device, cudaStream_t, as a plain pointer; others pay no heed to it.
using AnyStream = void *;

/// AttentionTensors of any element type, by the same names. All but lse are of one.
struct AnyAttentionTensors {
  AnyTensor q;              ///< [tokens, query_heads, head_dim]
  AnyTensor k;              ///< [tokens, kv_heads, head_dim], or of no tokens
  AnyTensor v;              ///< [tokens, kv_heads, value_dim], or of no tokens
  AnyTensor out;            ///< [tokens, query_heads, value_dim]
  TensorView<float> lse{};  ///< [tokens, query_heads, 1], or of no tokens
  bool causal = true;       ///< whether queries see the tokens up to their own
};

/// A SnapshotSink that is a function.
struct AnySink {
  /// Is given every piece; throws where it cannot take it.
  std::function<void(std::span<const std::byte>)> take;
  /// Calls it.
  void write(std::span<const std::byte> bytes) { take(bytes); }
};

/// A SnapshotSource that is a function.
struct AnySource {
  /// Fills all of the span, or throws.
  std::function<void(std::span<std::byte>)> give;
  /// Calls it.
  void read(std::span<std::byte> bytes) { give(bytes); }
};

/// A KVCache behind virtual calls, which are those of KVCache. `layer` counts the group's layers.
class GroupCache {
 public:
  using Batch = std::span<const SequenceTokens>;  ///< the sequences of a call

  virtual ~GroupCache() = default;

  /// @{
  /// KVCache's call of this name.
  virtual const Options &options() const = 0;
  virtual int key_bits() const = 0;
  virtual int value_bits() const = 0;

  virtual SequenceId add_sequence() = 0;
  virtual void remove_sequence(SequenceId sequence) = 0;
  virtual SequenceId fork(SequenceId parent, Index tokens, AnyStream stream) = 0;
  /// @}

  /// A reorder() that waits to be done, before any other call.
  class PreparedReorder {
   public:
    virtual ~PreparedReorder() = default;
    /// Does it; cannot fail.
    virtual void commit(AnyStream stream) = 0;
  };
  /// Checks, allocates and copies.
  virtual std::unique_ptr<PreparedReorder> prepare_reorder(std::span<const SequenceId> sequences,
                                                           std::span<const SequenceId> parents,
                                                           AnyStream stream) = 0;

  /// @{
  /// KVCache's call of this name.
  virtual void check_truncate(SequenceId sequence, Index tokens) const = 0;
  virtual void truncate(SequenceId sequence, Index tokens, AnyStream stream) = 0;
  virtual void prepare_shift(SequenceId sequence, Index first, Index last, Index by,
                             AnyStream stream) = 0;
  virtual void shift(SequenceId sequence, Index first, Index last, Index by, AnyStream stream) = 0;

  virtual void save(SequenceId sequence, AnySink out, const SaveOptions &how, AnyStream stream) = 0;
  virtual SequenceId load(AnySource in, const SnapshotProgress &progress, AnyStream stream) = 0;
  virtual void save_codings(AnySink out, const SnapshotProgress &progress, AnyStream stream) = 0;
  virtual void load_codings(AnySource in, const SnapshotProgress &progress, AnyStream stream) = 0;

  virtual void attend(Batch batch, int layer, const AnyAttentionTensors &tensors, AnyStream stream) = 0;
  virtual void draft(Batch batch, int layer, const AnyAttentionTensors &tensors,
                     std::span<const Index> parents, AnyStream stream) = 0;
  /// @}
  /// q: of no tokens where there are no queries to learn from.
  virtual void append(Batch batch, int layer, AnyTensor q, AnyTensor k, AnyTensor v,
                      AnyStream stream) = 0;
  /// @{
  /// KVCache's call of this name.
  virtual void dequantize(SequenceId sequence, int layer, AnyTensor k, AnyTensor v,
                          AnyStream stream) = 0;

  virtual void reset_learning(AnyStream stream) = 0;
  virtual Prior statistics() const = 0;

  virtual Index length(SequenceId sequence) const = 0;
  virtual Index length(SequenceId sequence, int layer) const = 0;
  virtual std::size_t page_bytes(int layer) const = 0;
  virtual std::size_t free_pages() const = 0;
  virtual std::size_t pages_due(Batch batch) const = 0;
  virtual FreedPages freed_if_removed(SequenceId sequence) const = 0;
  virtual MemoryReport memory_report() const = 0;
  /// @}

  /// @{
  /// Of captured steps on a device; on the CPU there are none, and counting them throws Error.
  virtual Index steps_to_replay(Batch batch) const = 0;
  virtual void check_steps(Batch batch, Index steps) const = 0;
  virtual void advance(Batch batch, Index steps, AnyStream stream) = 0;
  /// @}
  /// On a device, what decode steps have met; others do nothing.
  virtual void check(AnyStream stream) const = 0;
};

}  // namespace squat::inline SQUAT_API_NAMESPACE
