// The caches of one pair of widths: an object a pair, so that they compile side by side, for they take a
// while.

#include "cuda/make_group.hpp"
#include "squat/model/make_group.hpp"
#include "squat/squat.cuh"

namespace engine::cuda {

template <>
std::unique_ptr<squat::GroupCache> make_group_of<ENGINE_KEY_BITS, ENGINE_VALUE_BITS>(
    const squat::Options &options, squat::ElementType exact_rows) {
  using Widths = squat::Widths<ENGINE_KEY_BITS, ENGINE_VALUE_BITS>;
  const auto make = [&]<class Backend>() {
    return squat::make_group<Backend, squat::half, Widths>(options, exact_rows, Widths::key_bits,
                                                           Widths::value_bits);
  };
  if constexpr (ENGINE_KEY_BITS <= 4 && ENGINE_VALUE_BITS <= 4) {
    if (options.codes == squat::Codes::trellis)
      return make.template operator()<squat::CudaTrellis<ENGINE_CUDA_HEAD_DIM>>();
    if (options.allocation.value_or(squat::Allocation::head) != squat::Allocation::head)
      return make.template operator()<squat::CudaSharing<ENGINE_CUDA_HEAD_DIM>>();
  }
  return make.template operator()<squat::CudaFor<ENGINE_CUDA_HEAD_DIM>>();
}

}  // namespace engine::cuda
