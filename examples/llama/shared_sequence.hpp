#pragma once

// A sequence of a cache that it may share with others: those that were forked from it.

#include <memory>
#include <span>
#include <stdexcept>
#include <vector>

#include "squat/squat.hpp"

namespace llama {

/// Removes the sequence when it goes; the cache goes with the last of its sequences. One thread at a
/// time may use those of a cache.
template <class KVCache>
class SharedSequence {
 public:
  /// The first of a cache of its own.
  explicit SharedSequence(const squat::Options &options)
      : cache_(std::make_shared<KVCache>(options)), id_(cache_->add_sequence()) {}
  /// A sequence of the same cache that begins as `parent` is now.
  template <class... Stream>
  explicit SharedSequence(const SharedSequence *parent, Stream... stream)
      : cache_(parent->cache_), id_(cache_->fork(parent->id_, stream...)) {}
  ~SharedSequence() { cache_->remove_sequence(id_); }
  SharedSequence(const SharedSequence &) = delete;
  SharedSequence &operator=(const SharedSequence &) = delete;

  KVCache &cache() const { return *cache_; }
  squat::SequenceId id() const { return id_; }

 private:
  std::shared_ptr<KVCache> cache_;
  squat::SequenceId id_;
};

/// The handles of sequences of the cache that `shared` names. Throws std::invalid_argument for others.
template <class Cache>
std::vector<squat::SequenceId> ids_of(std::span<Cache *const> sequences, const void *shared) {
  std::vector<squat::SequenceId> ids;
  for (const Cache *sequence : sequences) {
    if (sequence->shared() != shared)
      throw std::invalid_argument("sequences that are reordered are forks of one");
    ids.push_back(sequence->id());
  }
  return ids;
}

}  // namespace llama
