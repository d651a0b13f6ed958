#pragma once

// Sequences and codings are saved and loaded again: by a cache and by its model.

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "saved_model.hpp"
#include "token_operations.hpp"

namespace squat::test {

template <class Place, class T, int KeyBits, int ValueBits>
class SnapshotOperations : protected TokenOperations<Place, T, KeyBits, ValueBits> {
  using Base = TokenOperations<Place, T, KeyBits, ValueBits>;

 public:
  using Base::Base;

 protected:
  using Base::adopt, Base::cache_, Base::is_full, Base::make, Base::model_, Base::options,
      Base::pick_one;

  struct Saved {
    Bytes bytes;
    std::vector<LayerModel> layers;  // none in a snapshot of codings
    std::vector<SavedCoding> codings;
  };

  void save(const Operation &operation) {
    SequenceModel *sequence = pick_one(operation);
    if (sequence == nullptr) return;
    const bool with_codings = operation.seed % 4 != 0;
    Saved &slot = saved_[static_cast<std::size_t>(operation.first) % slots];
    slot = {{}, sequence->layers, {}};
    for (LayerModel &layer : slot.layers) {
      const CodingHandle coding = std::move(layer.coding);  // which a snapshot does not hold
      slot.codings.push_back(save_coding(model_.learning, *coding, with_codings));
    }
    make(false, [&] {
      slot.bytes.clear();
      cache_.save(sequence->id, slot.bytes, {.codings = with_codings});
    });
  }

  void load(const Operation &operation) {
    const Saved &slot = saved_[static_cast<std::size_t>(operation.first) % slots];
    if (slot.bytes.empty() || is_full() || (model_.learning.together() && !still_learnt(slot.codings)))
      return;
    TakenCodings taken(model_.learning);
    std::vector<LayerModel> layers = slot.layers;
    std::map<const int *, std::shared_ptr<int>> pages;
    bool refused = false, same = true;
    for (std::size_t layer = 0; layer < layers.size() && !refused; ++layer) {
      LayerModel &state = layers[layer];
      const SavedCoding &coding = slot.codings[layer];
      const CodingHandle own = model_.learning.coding_for(static_cast<int>(layer));
      state.coding = taken.take(coding, own, !state.pages.empty(), !model_.learning.together());
      refused = state.coding == nullptr;
      same = same && !refused && coding.present && state.coding->content == coding.coding.content &&
             model_.learning.learnt(*state.coding) == coding.ready;
      for (PageModel &page : state.pages) {
        std::shared_ptr<int> &loaded = pages[page.page.get()];
        if (!loaded) loaded = std::make_shared<int>();
        page.page = loaded;
      }
    }
    refused = refused || pages.size() > options().max_pages - model_.pages().used;
    SequenceId id;
    if (!make(refused, [&] { id = cache_.load(slot.bytes); })) return taken.give_back();
    if (same) require(saved(cache_, id) == slot.bytes, "what was loaded is not what was saved");
    adopt(id, std::move(layers));
  }

  void save_codings(const Operation &) {
    Saved slot;
    for (int layer = 0; layer < options().layers && !model_.learning.per_sequence(); ++layer)
      slot.codings.push_back(save_coding(model_.learning, *model_.learning.own(layer), true));
    if (make(model_.learning.per_sequence(), [&] {
          slot.bytes.clear();
          cache_.save_codings(slot.bytes);
        }))
      codings_ = std::move(slot);
  }

  void load_codings(const Operation &) {
    if (codings_.bytes.empty() || (model_.learning.together() && !still_learnt(codings_.codings)))
      return;
    TakenCodings taken(model_.learning);
    bool refused = false;
    for (int layer = 0; layer < options().layers && !refused; ++layer) {
      refused = taken.take(codings_.codings[static_cast<std::size_t>(layer)], model_.learning.own(layer),
                           true, false) == nullptr;
    }
    if (!make(refused, [&] { cache_.load_codings(codings_.bytes); })) taken.give_back();
  }

  /// Whether the cache's codings are what they were.
  bool still_learnt(const std::vector<SavedCoding> &codings) {
    return std::all_of(codings.begin(), codings.end(), [&](const SavedCoding &saved) {
      const CodingModel &own = *model_.learning.own(saved.coding.layer);
      return saved.coding.content == own.content && saved.ready == model_.learning.learnt(own);
    });
  }

  static constexpr std::size_t slots = 3;
  std::array<Saved, slots> saved_;

 private:
  Saved codings_;
};

}  // namespace squat::test
