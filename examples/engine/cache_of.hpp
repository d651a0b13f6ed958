#pragma once

#include "cache.hpp"

namespace engine {

/// The cache of one type, whose calls go into one stream.
template <class KVCache, class Stream>
class CacheOf : public Cache {
 public:
  explicit CacheOf(const squat::Options &options, Stream stream = {})
      : cache_(options), stream_(stream) {}

  const squat::Options &options() const override { return cache_.options(); }

  SequenceId add_sequence() override { return cache_.add_sequence(); }
  void remove_sequence(SequenceId sequence) override { cache_.remove_sequence(sequence); }
  SequenceId fork(SequenceId parent, Index tokens) override {
    return cache_.fork(parent, tokens, stream_);
  }
  void reorder(std::span<const SequenceId> sequences, std::span<const SequenceId> parents) override {
    cache_.reorder(sequences, parents, stream_);
  }
  void truncate(SequenceId sequence, Index tokens) override {
    cache_.truncate(sequence, tokens, stream_);
  }
  void save(SequenceId sequence, std::ostream &out) override { cache_.save(sequence, out, {}, stream_); }
  SequenceId load(std::istream &in) override { return cache_.load(in, {}, stream_); }
  Index length(SequenceId sequence) const override { return cache_.length(sequence); }

  std::size_t page_bytes(int layer) const override { return cache_.page_bytes(layer); }
  std::size_t free_pages() const override { return cache_.free_pages(); }
  std::size_t pages_due(Batch batch) const override { return cache_.pages_due(batch); }
  squat::FreedPages freed_if_removed(SequenceId sequence) const override {
    return cache_.freed_if_removed(sequence);
  }
  squat::MemoryReport memory_report() const override { return cache_.memory_report(); }

  void attend(Batch batch, int layer, Rows q, Rows k, Rows v, Rows out) override {
    cache_.attend(batch, layer, q, k, v, out, stream_);
  }

 private:
  KVCache cache_;
  Stream stream_;
};

}  // namespace engine
