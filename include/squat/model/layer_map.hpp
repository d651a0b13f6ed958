#pragma once

// Where a model's layers are kept.

#include <cstddef>
#include <string>
#include <vector>

#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/model/model_options.hpp"

namespace squat::detail::inline SQUAT_API_NAMESPACE {

/// A model's layer in its group.
struct LayerPlace {
  int group = none;
  int layer = 0;
  int keys_of = none;  // the model's layer whose keys it shares

  static constexpr int none = -1;
};

class LayerMap {
 public:
  /// Throws Error unless every layer is named once.
  explicit LayerMap(const ModelOptions &options) {
    if (options.layers < 1) throw_invalid("layers", options.layers, "at least 1");
    places_.resize(static_cast<std::size_t>(options.layers));
    std::vector<bool> named(places_.size());
    const auto name = [&](const char *where, int layer) -> LayerPlace & {
      if (layer < 0 || layer >= options.layers) throw_invalid(where, layer, "0 to", options.layers - 1);
      if (named[static_cast<std::size_t>(layer)]) throw_invalid(where, layer, "named once");
      named[static_cast<std::size_t>(layer)] = true;
      return places_[static_cast<std::size_t>(layer)];
    };
    for (std::size_t group = 0; group < options.groups.size(); ++group) {
      const std::vector<int> &layers = options.groups[group].layers;
      if (layers.empty()) throw_invalid("groups.layers", "empty", "at least one layer");
      for (std::size_t i = 0; i < layers.size(); ++i) {
        LayerPlace &place = name("groups.layers", layers[i]);
        place.group = static_cast<int>(group);
        place.layer = static_cast<int>(i);
      }
    }
    for (const int layer : options.layers_without_keys) name("layers_without_keys", layer);
    for (const SharedLayer &shared : options.shared_layers) {
      LayerPlace &place = name("shared_layers.layer", shared.layer);
      if (shared.keys_of < 0 || shared.keys_of >= options.layers ||
          at(shared.keys_of).group == LayerPlace::none || at(shared.keys_of).keys_of >= 0)
        throw_invalid("shared_layers.keys_of", shared.keys_of, "a layer of a group");
      place = at(shared.keys_of);
      place.keys_of = shared.keys_of;
    }
    for (std::size_t layer = 0; layer < named.size(); ++layer) {
      if (!named[layer])
        throw_invalid("groups", "without layer " + std::to_string(layer),
                      "such that each layer is in a group, shared, or without keys");
    }
  }

  int layers() const { return static_cast<int>(places_.size()); }

  /// Throws Error for a layer that sees no keys.
  const LayerPlace &find(int layer) const {
    if (layer < 0 || layer >= layers()) throw_invalid("layer", layer, "0 to", layers() - 1);
    if (at(layer).group == LayerPlace::none) throw_invalid("layer", layer, "one that has keys");
    return at(layer);
  }

  /// Throws Error for a layer that has no keys of its own.
  const LayerPlace &find_owner(int layer) const {
    const LayerPlace &place = find(layer);
    if (place.keys_of != LayerPlace::none)
      throw_invalid("layer", layer,
                    "one with keys of its own where keys are appended: its keys are those of layer",
                    place.keys_of);
    return place;
  }

 private:
  const LayerPlace &at(int layer) const { return places_[static_cast<std::size_t>(layer)]; }

  std::vector<LayerPlace> places_;
};

}  // namespace squat::detail::inline SQUAT_API_NAMESPACE
