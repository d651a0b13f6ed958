#pragma once

// Operations, made on a cache and on its model one after the other.

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "snapshot_operations.hpp"

namespace squat::test {

template <class Place, class T, int KeyBits, int ValueBits>
class RandomRun : SnapshotOperations<Place, T, KeyBits, ValueBits> {
  using Base = SnapshotOperations<Place, T, KeyBits, ValueBits>;

 public:
  using Base::Base;

  /// Throws Violation where something is not as it must be.
  void apply(const Operation &operation) {
    static constexpr void (RandomRun::*calls[])(const Operation &) = {
        &RandomRun::add,          &RandomRun::remove,         &RandomRun::append,
        &RandomRun::step,         &RandomRun::read,           &RandomRun::truncate,
        &RandomRun::shift,        &RandomRun::fork,           &RandomRun::reorder,
        &RandomRun::save,         &RandomRun::load,           &RandomRun::save_codings,
        &RandomRun::load_codings, &RandomRun::reset_learning, &RandomRun::bad_call};
    fails_at_ = operation.fails_at;
    touched_.clear();
    (this->*calls[static_cast<std::size_t>(operation.kind)])(operation);
    Base::check_touched();
  }

  /// Looks at every sequence once more.
  void finish() { Base::check_all(); }

 private:
  using Base::cache_, Base::fails_at_, Base::make, Base::model_, Base::options, Base::pick_one,
      Base::rows, Base::saved_, Base::slots, Base::touched_;

  void reset_learning(const Operation &) {
    LearningModel &learning = model_.learning;
    bool refused = learning.per_sequence();
    std::vector<bool> packed;
    for (int layer = 0; layer < options().layers && !refused && learning.learns_at_all(); ++layer) {
      packed.push_back(model_.has_packed(learning.own(layer)));
      refused = packed.back() && (learning.together() || learning.held(layer) >= 4);
    }
    fails_at_ = 0;  // where memory is out, some layers may have begun
    if (!make(refused, [&] { cache_.reset_learning(); }) || !learning.learns_at_all()) return;
    for (int layer = 0; layer < options().layers; ++layer) {
      CodingHandle &own = learning.own(layer);
      if (!packed[static_cast<std::size_t>(layer)]) {
        learning.forget(*own);
        continue;
      }
      const CodingHandle before = std::exchange(own, learning.add(layer));
      for (SequenceModel &sequence : model_.sequences) {
        LayerModel &state = sequence.layers[static_cast<std::size_t>(layer)];
        if (state.coding == before && state.tokens.empty()) state.coding = own;
      }
    }
    for (const SequenceModel &sequence : model_.sequences) touched_.push_back(sequence.id);
  }

  void bad_call(const Operation &operation) {
    SequenceModel *sequence = pick_one(operation);
    if (sequence == nullptr) return;
    const SequenceId id = sequence->id;
    Tensor<float> q = rows(3, options().query_heads, 1), k = rows(3, options().kv_heads, 2), v = k;
    const std::size_t at = operation.seed % k.elements.size();
    (operation.seed % 2 == 0 ? k : v).elements[at] = operation.seed % 3 == 0 ? 1e30f : std::nanf("");
    typename Place::Copy to_q(q), to_k(k), to_v(v), to_out(q);
    const Index length = sequence->length();
    const auto append = [&](SequenceId whose, int layer) {
      cache_.attend(whose, layer, to_q.view(), to_k.view(), to_v.view(), to_out.view());
    };
    Bytes damaged = saved_[static_cast<std::size_t>(operation.first) % slots].bytes;
    if (!damaged.empty()) damaged[operation.seed % damaged.size()] ^= std::byte{1};
    make(true, [&] {
      switch (operation.tokens % 9) {
        case 0:
          return append(id, 0);
        case 1:
          return append({id.value + (std::uint64_t{1} << 32)}, 0);
        case 2:
          return append(id, options().layers);
        case 3:
          return cache_.truncate(id, length + 1);
        case 4:
          return void(cache_.fork(id, length + 1));
        case 5:
          return cache_.shift(id, 0, length + 1, 0);
        case 6:
          return cache_.reorder(std::array{id, id}, std::array{id, id});
        case 7:
          return void(cache_.load(damaged));
        default:
          return cache_.attend(id, 0, to_q.view(0, 2), to_k.view(), to_v.view(), to_out.view(0, 2));
      }
    });
  }
};

}  // namespace squat::test
