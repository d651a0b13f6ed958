#pragma once

// The cache of a model in which some layers attend through a window.

#include <functional>
#include <memory>

#include "cache.hpp"
#include "config.hpp"

namespace engine {

using MakeCache = std::function<std::unique_ptr<Cache>(const squat::Options &)>;

/// A cache of all layers. Options::attention_window is one for a cache: where the model has local
/// layers, these and the others are in caches of their own, made by `make`, behind one set of sequences.
/// Throws std::invalid_argument for options with a prior then, which would speak of all layers.
std::unique_ptr<Cache> make_windowed_cache(const Config &config, const squat::Options &options,
                                           const MakeCache &make);

}  // namespace engine
