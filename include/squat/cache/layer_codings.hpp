#pragma once

// Which codings the layers of a cache have, who needs them, and how they come and go.

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "squat/cache/coding_references.hpp"
#include "squat/cache/layer_pages.hpp"
#include "squat/cache/learning.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/sequence.hpp"
#include "squat/cache/sequence_table.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::detail::inline SQUAT_API_NAMESPACE {

/// A layer has the coding that new sequences get, unless each gets its own; those of sequences that were
/// there before it began anew, or were loaded with another; and one that has learnt nothing, once it is
/// needed. Each goes with the last that needs it. Operations, Pages: the cache's, which every call
/// takes.
template <class Operations, class Stream>
class LayerCodings {
 public:
  using Exact = typename Operations::Exact;
  using Layer = LayerTokens<Exact>;
  using Sequence = SequenceState<Exact>;
  using Pages = LayerPages<typename Operations::Memory, Exact>;

  LayerCodings(const Options &options, int key_bits)
      : learning_(options, key_bits),
        own_(static_cast<std::size_t>(options.layers), Layer::no_coding),
        without_learning_(own_),
        per_sequence_(options.learning == LearningMode::per_sequence),
        sized_by_layer_(*options.allocation == Allocation::model) {}

  /// Gives every layer its coding, unless sequences have their own.
  void begin(const Options &options, Operations &operations, Pages &pages, Stream stream) {
    if (per_sequence_) return;
    for (int layer = 0; layer < options.layers; ++layer) own_of(layer) = add(operations, pages, layer);
    learn_from_prior(options, operations, pages, stream);
  }

  /// What they have learnt.
  Learning &learning() { return learning_; }
  const Learning &learning() const { return learning_; }

  /// The coding that new sequences get in a layer. None where each gets its own.
  Index own(int layer) const { return own_[static_cast<std::size_t>(layer)]; }

  /// Whether pages of each layer have a size of their own, which learning gives them.
  bool sized_by_layer() const { return sized_by_layer_; }

  void check_shared() const {
    if (per_sequence_)
      throw_invalid("learning", "per_sequence", "another where codings are the cache's");
  }

  /// Throws Error where a layer has as many codings that learnt as it may.
  void check_room(int layer) const {
    constexpr int most = 4;
    int held = 0;
    references_.for_each([&](Index coding, int of_layer) {
      if (of_layer == layer && learning_.learns(coding)) ++held;
    });
    if (held >= most && !per_sequence_)
      throw_invalid(
          "codings", held + 1,
          "at most 4 of layer " + std::to_string(layer) + ": remove the sequences of an earlier one");
  }

  /// Calls visit(coding, layer) once for each coding that is there.
  template <class Visit>
  void for_each(Visit &&visit) const {
    references_.for_each(visit);
  }

  // ---- coming and going

  /// A coding that has seen nothing, held for whoever asked for it. Allocates; on failure nothing has
  /// changed.
  Index add(Operations &operations, Pages &pages, int layer) {
    const Index coding = operations.add_coding(layer);
    try {
      pages.set_page_bytes(coding, operations.page_bytes(coding));
      learning_.add(coding);
      references_.add(coding, layer);
    } catch (...) {
      operations.remove_coding(coding);
      throw;
    }
    return coding;
  }

  /// What a layer of a new sequence is coded with, held for it.
  Index for_sequence(Operations &operations, Pages &pages, int layer) {
    if (per_sequence_) return add(operations, pages, layer);
    references_.retain(own(layer));
    return own(layer);
  }

  /// The coding of a layer that has learnt nothing and never will, held by the cache once it is there.
  Index without_learning(Operations &operations, Pages &pages, int layer, Stream stream) {
    Index &coding = without_learning_[static_cast<std::size_t>(layer)];
    if (coding != Layer::no_coding) return coding;
    const Index added = add(operations, pages, layer);
    try {
      operations.learn_nothing(added, stream);
    } catch (...) {
      release(operations, added);
      throw;
    }
    learning_.fix(added);
    return coding = added;
  }

  /// One more needs it.
  void retain(Index coding) { references_.retain(coding); }

  void release(Operations &operations, Index coding) {
    if (!references_.release(coding)) return;
    learning_.remove(coding);
    operations.remove_coding(coding);
  }

  /// A layer without pages has another coding from now on.
  void change(Operations &operations, Layer &layer, Index coding) {
    if (coding == layer.coding) return;
    references_.retain(coding);
    release(operations, std::exchange(layer.coding, coding));
  }

  // ---- learning anew

  /// See KVCacheBase::reset_learning().
  void reset(const Options &options, Operations &operations, Pages &pages,
             const SequenceTable<Sequence> &sequences, Stream stream) {
    std::vector<Index> next(own_);
    try {
      for (int layer = 0; layer < options.layers; ++layer) {
        if (!has_packed(sequences, own(layer))) continue;
        if (sized_by_layer_)
          throw Error("squat: layer " + std::to_string(layer) +
                      " has packed pages: under allocation model learning begins anew without any");
        check_room(layer);
        next[static_cast<std::size_t>(layer)] = add(operations, pages, layer);
      }
    } catch (...) {
      for (std::size_t layer = 0; layer < next.size(); ++layer) {
        if (next[layer] != own_[layer]) release(operations, next[layer]);
      }
      throw;
    }
    for (int layer = 0; layer < options.layers; ++layer) {
      const Index coding = next[static_cast<std::size_t>(layer)];
      if (coding == own(layer)) {
        operations.forget(coding, stream);
        learning_.add(coding);
      } else {
        give_to_empty_sequences(operations, sequences, layer, coding);
        release(operations, std::exchange(own_of(layer), coding));
      }
    }
    learn_from_prior(options, operations, pages, stream);
  }

 private:
  Index &own_of(int layer) { return own_[static_cast<std::size_t>(layer)]; }

  /// Whether a sequence has pages of a coding.
  static bool has_packed(const SequenceTable<Sequence> &sequences, Index coding) {
    bool packed = false;
    sequences.for_each([&](const Sequence &sequence) {
      for (const Layer &layer : sequence.layers)
        packed = packed || (layer.coding == coding && !layer.pages.empty());
    });
    return packed;
  }

  void give_to_empty_sequences(Operations &operations, const SequenceTable<Sequence> &sequences,
                               int layer, Index coding) {
    sequences.for_each([&](Sequence &sequence) {
      Layer &tokens = sequence.layers[static_cast<std::size_t>(layer)];
      if (tokens.coding == own(layer) && tokens.length() == 0) change(operations, tokens, coding);
    });
  }

  /// Learns what a prior says, where that is enough.
  void learn_from_prior(const Options &options, Operations &operations, Pages &pages, Stream stream) {
    if (!learning_.learns_from_prior(options)) return;
    for (const Index coding : own_) learning_.learn_from_prior(operations, coding, stream);
    for (const Index coding : own_) pages.set_page_bytes(coding, operations.page_bytes(coding));
  }

  Learning learning_;
  CodingReferences references_;
  std::vector<Index> own_;               // the coding that new sequences get, of each layer
  std::vector<Index> without_learning_;  // the one that has learnt nothing, of each layer once needed
  bool per_sequence_;
  bool sized_by_layer_;
};

}  // namespace squat::detail::inline SQUAT_API_NAMESPACE
