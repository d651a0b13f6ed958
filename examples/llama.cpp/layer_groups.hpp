#pragma once

// Which layers of a model are one group of a ModelCache.

#include <functional>
#include <span>

#include "squat/model/model_options.hpp"

namespace squat_llama {

/// A group for each kind of layer, in the order in which they come. shapes [layers], each with one
/// rotary table; make_group(shape) makes the group of the first layer of a kind.
squat::ModelOptions group_layers(
    std::span<const squat::Options> shapes,
    const std::function<squat::LayerGroup(const squat::Options &)> &make_group);

}  // namespace squat_llama
