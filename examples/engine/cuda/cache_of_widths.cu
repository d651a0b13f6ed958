// The cache of one pair of widths: an object a pair, so that they compile side by side, for they take a
// while.

#include "cache_of.hpp"
#include "cuda/make_cache.hpp"
#include "squat/squat.cuh"

namespace engine::cuda {

template <>
std::unique_ptr<Cache> make_cache_of<ENGINE_KEY_BITS, ENGINE_VALUE_BITS>(const squat::Options &options,
                                                                         cudaStream_t stream) {
  using Backend = squat::CudaFor<ENGINE_HEAD_DIM>;
  using KVCache = squat::KVCache<squat::half, ENGINE_KEY_BITS, ENGINE_VALUE_BITS, Backend>;
  return std::make_unique<CacheOf<KVCache, cudaStream_t>>(options, stream);
}

}  // namespace engine::cuda
