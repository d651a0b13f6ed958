// The caches of one pair of widths: an object a pair, so that they compile side by side, for they take a
// while.

#include "cuda/make_group.hpp"
#include "squat/model/cuda_group.cuh"
#include "squat/model/make_group.hpp"

namespace engine::cuda {

template <>
std::unique_ptr<squat::GroupCache> make_group_of<ENGINE_KEY_BITS, ENGINE_VALUE_BITS>(
    const squat::Options &options, squat::ElementType exact_rows) {
  return squat::make_cuda_group<ENGINE_CUDA_HEAD_DIM, squat::half,
                                squat::Widths<ENGINE_KEY_BITS, ENGINE_VALUE_BITS>>(options, exact_rows);
}

}  // namespace engine::cuda
