// The kernels of one head_dim, pair of widths and type of exact rows: an object each, for they take two
// minutes to compile and so do it side by side. CMake names the four.

#include <type_traits>

#include "cuda/make_group.hpp"
#include "squat/model/cuda_group.cuh"
#include "squat/model/make_group.hpp"

namespace squat_kv {

constexpr auto exact_rows = squat::ElementType::SQUAT_KV_EXACT_ROWS;

template <>
std::unique_ptr<squat::GroupCache>
make_group_of<SQUAT_KV_HEAD_DIM, SQUAT_KV_KEY_BITS, SQUAT_KV_VALUE_BITS, exact_rows>(
    const squat::Options &options) {
  using Rows =
      std::conditional_t<exact_rows == squat::ElementType::float16, squat::half, squat::bfloat16>;
  return squat::make_cuda_group<SQUAT_KV_HEAD_DIM, Rows,
                                squat::Widths<SQUAT_KV_KEY_BITS, SQUAT_KV_VALUE_BITS>>(options,
                                                                                       exact_rows);
}

}  // namespace squat_kv
