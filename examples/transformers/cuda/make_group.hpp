#pragma once

// The caches of groups of layers on the GPU, for squat::ModelCache.

#include <memory>

#include "squat/core/any_tensor.hpp"
#include "squat/model/group_cache.hpp"

namespace squat_kv {

/// A squat::MakeGroup. Throws squat::Error for what there are no kernels for.
std::unique_ptr<squat::GroupCache> make_cuda_group(const squat::Options &options,
                                                   squat::ElementType exact_rows, int key_bits,
                                                   int value_bits);

/// With the kernels of one object, which take heads of up to HeadDim channels; see
/// group_of_kernels.cu.
template <int HeadDim, int KeyBits, int ValueBits, squat::ElementType ExactRows>
std::unique_ptr<squat::GroupCache> make_group_of(const squat::Options &options);

}  // namespace squat_kv
