#pragma once

// The caches of groups of layers on the GPU, for squat::ModelCache.

#include <memory>

#include "squat/model/group_cache.hpp"

namespace engine::cuda {

/// Defined in group_of_widths.cu, for the pairs that CMake's ENGINE_CUDA_WIDTHS names.
template <int KeyBits, int ValueBits>
std::unique_ptr<squat::GroupCache> make_group_of(const squat::Options &options,
                                                 squat::ElementType exact_rows);

}  // namespace engine::cuda
