#include "cuda/make_cache.hpp"

#include <stdexcept>

namespace engine::cuda {

std::unique_ptr<Cache> make_cache(const CacheSpec &spec, const squat::Options &options,
                                  cudaStream_t stream) {
#define WIDTHS(key_bits_, value_bits_)                              \
  if (spec.key_bits == key_bits_ && spec.value_bits == value_bits_) \
    return make_cache_of<key_bits_, value_bits_>(options, stream);
  ENGINE_WIDTHS
#undef WIDTHS
  throw std::invalid_argument(
      "coding '" + spec.text +
      "': these widths were not compiled for cuda; CMake's ENGINE_CUDA_WIDTHS names them");
}

}  // namespace engine::cuda
