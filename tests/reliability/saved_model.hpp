#pragma once

// What becomes of a saved coding where a cache has one too, by the rules that KVCache::load() and
// save() state.

#include <utility>
#include <vector>

#include "learning_model.hpp"

namespace squat::test {

/// A layer's coding as it was saved.
struct SavedCoding {
  CodingModel coding;
  bool ready = false;    ///< pages can be packed with it
  bool present = false;  ///< it is in the snapshot, and not its fingerprint alone
};

inline SavedCoding save_coding(const LearningModel &learning, const CodingModel &coding, bool present) {
  return {coding, learning.learnt(coding), present};
}

/// Takes the codings of a snapshot into a model, all or none.
class TakenCodings {
 public:
  explicit TakenCodings(LearningModel &learning) : learning_(learning) {}

  /// Returns what a layer whose coding was `own` has from now on, null where the snapshot is refused.
  /// needed: pages are packed with the saved one. beside: it may come beside the layer's own.
  CodingHandle take(const SavedCoding &saved, const CodingHandle &own, bool needed, bool beside) {
    const int layer = own->layer;
    if (needed && beside && saved.ready) {
      if (CodingHandle same = learning_.same(saved.coding, own)) return same;
    }
    const bool ready = learning_.learnt(*own), untouched = own->observed == 0;
    if (saved.coding.content == own->content && saved.ready == ready) return own;
    const bool nothing = saved.ready && saved.present && learning_.learns_at_all() &&
                         saved.coding.content == LearningModel::nothing;
    if (nothing) return needed ? learning_.without_learning(layer) : own;
    if ((saved.ready ? !ready : untouched) && saved.present) {
      before_.emplace_back(own, *own);
      own->content = saved.coding.content;
      own->observed = saved.coding.observed;
      return own;
    }
    if (!needed) return own;
    if (!ready || !saved.ready || !saved.present || !beside) return nullptr;
    if (learning_.held(layer) >= 4 && !learning_.per_sequence()) return nullptr;
    CodingHandle added = learning_.add(layer);
    *added = saved.coding;
    return added;
  }

  /// Undoes all of it.
  void give_back() {
    for (auto &[coding, before] : before_) *coding = before;
  }

 private:
  LearningModel &learning_;
  std::vector<std::pair<CodingHandle, CodingModel>> before_;
};

}  // namespace squat::test
