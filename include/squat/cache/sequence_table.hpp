#pragma once

// The sequences of a cache, found by their handles without a search.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "squat/cache/sequence_tokens.hpp"
#include "squat/core/error.hpp"

namespace squat::detail {

/// Slots that sequences come to and leave. A handle names a slot and its generation, which rises each
/// time the slot is given away, so that a handle of a sequence that was removed is recognised.
template <class Sequence>
class SequenceTable {
 public:
  /// Makes sure of a slot for add().
  void reserve() {
    if (!free_.empty()) return;
    if (free_.capacity() <= slots_.size()) free_.reserve(2 * slots_.size() + 1);  // remove() needs it
    slots_.emplace_back();
    free_.push_back(slots_.size() - 1);
  }

  /// Takes a sequence in, after a reserve().
  SequenceId add(std::unique_ptr<Sequence> sequence) {
    const std::size_t index = free_.back();
    Slot &slot = slots_[index];
    free_.pop_back();
    slot.sequence = std::move(sequence);
    ++slot.generation;
    return {(std::uint64_t{slot.generation} << 32) | index};
  }

  /// Throws Error for a handle of no sequence that is there.
  Sequence &find(SequenceId id) const {
    const auto index = static_cast<std::size_t>(id.value & 0xffffffffu);
    if (index >= slots_.size() || !slots_[index].sequence ||
        slots_[index].generation != id.value >> 32) {
      throw_invalid("sequence", id.value, "one that was added and not removed");
    }
    return *slots_[index].sequence;
  }

  void remove(SequenceId id) {
    find(id);
    const auto index = static_cast<std::size_t>(id.value & 0xffffffffu);
    slots_[index].sequence.reset();
    free_.push_back(index);
  }

  /// Calls visit(sequence) for all of them.
  template <class Visit>
  void for_each(Visit &&visit) const {
    for (const Slot &slot : slots_) {
      if (slot.sequence) visit(*slot.sequence);
    }
  }

 private:
  struct Slot {
    std::unique_ptr<Sequence> sequence;
    std::uint32_t generation = 0;
  };

  std::vector<Slot> slots_;
  std::vector<std::size_t> free_;
};

}  // namespace squat::detail
