#pragma once

// Sequences come, go, and take the tokens of others: on a cache and on its model.

#include <algorithm>
#include <cstddef>
#include <random>
#include <utility>
#include <vector>

#include "checked_cache.hpp"
#include "operation.hpp"

namespace squat::test {

template <class Place, class T, int KeyBits, int ValueBits>
class SequenceOperations : protected CheckedCache<Place, T, KeyBits, ValueBits> {
  using Base = CheckedCache<Place, T, KeyBits, ValueBits>;

 public:
  using Base::Base;

 protected:
  using Base::cache_, Base::make, Base::model_, Base::touched_;

  const Options &options() const { return cache_.options(); }

  std::vector<SequenceModel *> pick(const Operation &operation) {
    std::vector<SequenceModel *> picked;
    auto &all = model_.sequences;
    for (int i = 0; i < operation.sequences && picked.size() < all.size(); ++i)
      picked.push_back(&all[static_cast<std::size_t>(operation.sequence + i) % all.size()]);
    for (const SequenceModel *sequence : picked) touched_.push_back(sequence->id);
    return picked;
  }
  SequenceModel *pick_one(Operation operation) {
    operation.sequences = 1;
    const auto picked = pick(operation);
    return picked.empty() ? nullptr : picked.front();
  }
  bool is_full() const { return model_.sequences.size() >= most_sequences; }

  void adopt(SequenceId id, std::vector<LayerModel> layers) {
    touched_.push_back(id);
    model_.sequences.push_back({id, std::move(layers)});
  }

  void add(const Operation &) {
    if (is_full()) return;
    SequenceId id;
    make(false, [&] { id = cache_.add_sequence(); });
    adopt(id, model_.new_layers());
  }

  void remove(const Operation &operation) {
    SequenceModel *sequence = pick_one(operation);
    if (sequence == nullptr) return;
    const SequenceId id = sequence->id;
    cache_.remove_sequence(id);
    model_.sequences.erase(model_.sequences.begin() + (sequence - model_.sequences.data()));
    require(throws([&] { cache_.length(id); }), "a handle of a sequence that was removed is good");
  }

  void fork(const Operation &operation) {
    SequenceModel *parent = pick_one(operation);
    if (parent == nullptr || is_full()) return;
    const SequenceId from = parent->id;
    const Index tokens = operation.tokens % (parent->length() + 1);
    SequenceId id;
    make(false, [&] { id = cache_.fork(from, tokens); });
    std::vector<LayerModel> layers = parent->layers;
    for (LayerModel &layer : layers) layer.truncate(tokens);
    const SequenceId twin = cache_.fork(from);
    cache_.truncate(twin, tokens);
    require(saved(cache_, id) == saved(cache_, twin), "a fork is not its parent, truncated");
    cache_.remove_sequence(twin);
    adopt(id, std::move(layers));
  }

  void reorder(const Operation &operation) {
    const auto sequences = pick(operation);
    std::mt19937 random(operation.seed);
    std::vector<SequenceId> ids, parents;
    std::vector<std::vector<LayerModel>> layers;
    std::vector<Bytes> expected;
    for (const SequenceModel *sequence : sequences) {
      const SequenceModel &parent = model_.sequences[random() % model_.sequences.size()];
      ids.push_back(sequence->id);
      parents.push_back(parent.id);
      layers.push_back(parent.layers);
      expected.push_back(saved(cache_, parent.id));
    }
    make(false, [&] { cache_.reorder(ids, parents); });
    for (std::size_t i = 0; i < ids.size(); ++i) {
      sequences[i]->layers = std::move(layers[i]);
      require(saved(cache_, ids[i]) == expected[i], "a reordered sequence is not what its parent was");
    }
  }

 private:
  static constexpr std::size_t most_sequences = 7;

  template <class Call>
  static bool throws(Call &&call) {
    try {
      call();
    } catch (const Error &) {
      return true;
    }
    return false;
  }
};

}  // namespace squat::test
