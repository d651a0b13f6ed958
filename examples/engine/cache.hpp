#pragma once

// The keys and values of a model's sequences.

#include <cstddef>
#include <istream>
#include <memory>
#include <ostream>
#include <span>

#include "squat/squat.hpp"

namespace engine {

struct CacheSpec;

/// A squat::KVCache of any widths on any device, whose calls these are. Exact rows are float16, as
/// engines keep them. One thread at a time may call a cache.
class Cache {
 public:
  using SequenceId = squat::SequenceId;
  using Index = squat::Index;
  using Batch = std::span<const squat::SequenceTokens>;
  using Rows = squat::TensorView<float>;

  virtual ~Cache() = default;

  virtual const squat::Options &options() const = 0;

  virtual SequenceId add_sequence() = 0;
  virtual void remove_sequence(SequenceId sequence) = 0;
  virtual SequenceId fork(SequenceId parent, Index tokens) = 0;
  virtual void reorder(std::span<const SequenceId> sequences, std::span<const SequenceId> parents) = 0;
  virtual void truncate(SequenceId sequence, Index tokens) = 0;
  virtual void save(SequenceId sequence, std::ostream &out) = 0;
  virtual SequenceId load(std::istream &in) = 0;
  virtual Index length(SequenceId sequence) const = 0;

  virtual std::size_t page_bytes(int layer) const = 0;
  virtual std::size_t free_pages() const = 0;
  virtual std::size_t pages_due(Batch batch) const = 0;
  virtual squat::FreedPages freed_if_removed(SequenceId sequence) const = 0;
  virtual squat::MemoryReport memory_report() const = 0;

  /// Appends and attends. Rows are in the memory of the device.
  virtual void attend(Batch batch, int layer, Rows q, Rows k, Rows v, Rows out) = 0;
};

/// A cache on the CPU.
std::unique_ptr<Cache> make_cpu_cache(const CacheSpec &spec, const squat::Options &options);

}  // namespace engine
