#pragma once

// A cache on the GPU of the type a SPEC names.

#include <cuda_runtime_api.h>

#include <memory>

#include "cache.hpp"
#include "cache_spec.hpp"

namespace engine::cuda {

/// Calls of the cache go into the stream. Throws std::invalid_argument where the widths were not
/// compiled in.
std::unique_ptr<Cache> make_cache(const CacheSpec &spec, const squat::Options &options,
                                  cudaStream_t stream);

/// Defined in cache_of_widths.cu, for the pairs in ENGINE_WIDTHS.
template <int KeyBits, int ValueBits>
std::unique_ptr<Cache> make_cache_of(const squat::Options &options, cudaStream_t stream);

}  // namespace engine::cuda
