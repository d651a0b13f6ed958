#pragma once

// How the codings of a snapshot come into a cache.

#include <cstddef>
#include <utility>
#include <vector>

#include "squat/cache/layer_codings.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/snapshot.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::detail::inline SQUAT_API_NAMESPACE {

/// Takes what a load finds, and knows what it has changed of codings and of memory, which restore()
/// undoes. T: of the cache's exact rows.
template <class T, class Operations, class Stream>
class SnapshotCodings {
 public:
  using Codings = LayerCodings<Operations, Stream>;
  using Pages = typename Codings::Pages;
  using Layer = typename Codings::Layer;
  using FoundCoding = typename Snapshots<T, Operations, Stream>::FoundCoding;

  /// Before anything is read.
  SnapshotCodings(const Options &options, Operations &operations, Pages &pages, Codings &codings,
                  Stream stream)
      : options_(options),
        operations_(operations),
        pages_(pages),
        codings_(codings),
        stream_(stream),
        memory_(pages.mark()) {
    before_.reserve(static_cast<std::size_t>(options.layers));
  }

  /// Gives an empty layer the coding that a snapshot of such a shape has for it. needed: for its pages.
  void take(const Snapshots<T, Operations, Stream> &snapshots, const FoundCoding &found,
            const SnapshotShape &shape, Layer &layer, bool needed) {
    Index same = Layer::no_coding;
    codings_.for_each([&](Index coding, int of_layer) {
      if (needed && of_layer == layer.layer && coding != layer.coding &&
          snapshots.is_same(found, coding))
        same = coding;
    });
    if (same != Layer::no_coding) return codings_.change(operations_, layer, same);
    const bool beside = !codings_.sized_by_layer() || found.learnt_nothing;
    switch (snapshots.adoption_of(found, layer.coding, needed, beside)) {
      case Adoption::keep:
        return;
      case Adoption::adopt:
        if (options_.learning != LearningMode::per_sequence) note(layer.coding);
        return snapshots.adopt(found, shape, layer.coding);
      case Adoption::add:
        break;
    }
    if (found.learnt_nothing)
      return codings_.change(operations_, layer,
                             codings_.without_learning(operations_, pages_, layer.layer, stream_));
    codings_.check_room(layer.layer);
    const Index coding = codings_.add(operations_, pages_, layer.layer);
    codings_.change(operations_, layer, coding);
    codings_.release(operations_, coding);  // which is the sequence's alone
    snapshots.adopt(found, shape, coding);
  }

  /// Makes the cache's coding of a layer what a snapshot has for it, unless it is that already.
  void take(const Snapshots<T, Operations, Stream> &snapshots, const FoundCoding &found,
            const SnapshotShape &shape, int layer) {
    const Index own = codings_.own(layer);
    if (snapshots.adoption_of(found, own, true, false) == Adoption::keep) return;
    note(own);
    snapshots.adopt(found, shape, own);
  }

  void restore() {
    for (Before &each : before_) {
      operations_.restore(each.coding, std::move(each.backup));
      codings_.learning().restore(each.coding, each.observed);
    }
    pages_.back_to(memory_);
  }

 private:
  /// Before a coding is replaced that does not go with its sequence.
  void note(Index coding) {
    before_.push_back({coding, std::as_const(codings_).learning().observed(coding),
                       operations_.back_up(coding, stream_)});
  }

  struct Before {
    Index coding;
    Index observed;
    typename Operations::Backup backup;
  };

  const Options &options_;
  Operations &operations_;
  Pages &pages_;
  Codings &codings_;
  Stream stream_;
  typename Pages::Mark memory_;
  std::vector<Before> before_;
};

}  // namespace squat::detail::inline SQUAT_API_NAMESPACE
