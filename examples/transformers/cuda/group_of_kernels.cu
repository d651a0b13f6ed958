// The kernels of one head_dim, pair of widths and type of exact rows: an object each, for they take two
// minutes to compile and so do it side by side. CMake names the four.

#include <type_traits>

#include "cuda/make_group.hpp"
#include "squat/model/make_group.hpp"
#include "squat/squat.cuh"

namespace squat_kv {

constexpr auto exact_rows = squat::ElementType::SQUAT_KV_EXACT_ROWS;

template <>
std::unique_ptr<squat::GroupCache>
make_group_of<SQUAT_KV_HEAD_DIM, SQUAT_KV_KEY_BITS, SQUAT_KV_VALUE_BITS, exact_rows>(
    const squat::Options &options) {
  using Rows =
      std::conditional_t<exact_rows == squat::ElementType::float16, squat::half, squat::bfloat16>;
  using Widths = squat::Widths<SQUAT_KV_KEY_BITS, SQUAT_KV_VALUE_BITS>;
  const auto make = [&]<class Backend>() {
    return squat::make_group<Backend, Rows, Widths>(options, exact_rows, Widths::key_bits,
                                                    Widths::value_bits);
  };
  if constexpr (SQUAT_KV_KEY_BITS <= 4 && SQUAT_KV_VALUE_BITS <= 4 && SQUAT_KV_HEAD_DIM % 64 == 0) {
    if (options.codes == squat::Codes::trellis)
      return make.template operator()<squat::CudaTrellis<SQUAT_KV_HEAD_DIM>>();
    if (options.allocation.value_or(squat::Allocation::head) != squat::Allocation::head)
      return make.template operator()<squat::CudaSharing<SQUAT_KV_HEAD_DIM>>();
  }
  return make.template operator()<squat::CudaFor<SQUAT_KV_HEAD_DIM>>();
}

}  // namespace squat_kv
