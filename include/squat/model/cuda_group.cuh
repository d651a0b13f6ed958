#pragma once

// The caches of a group of layers on CUDA.

#include <memory>

#include "squat/cache/options.hpp"
#include "squat/core/any_tensor.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/cuda/operations.hpp"
#include "squat/model/group_cache.hpp"
#include "squat/model/make_group.hpp"

namespace squat::inline SQUAT_API_NAMESPACE {

/// make_group() of one head_dim and pair of widths, with the backend that the options ask for:
/// CudaTrellis for trellis codes, CudaSharing for bits that heads share, CudaSharingTrellis for both,
/// CudaFor for all else. The first three are compiled where widths are up to 4 bits and head_dim is a
/// multiple of 64, of trellis codes at most 192, of others 256; elsewhere CudaFor throws the Error that
/// names them.
template <int HeadDim, Element T, class W>
std::unique_ptr<GroupCache> make_cuda_group(const Options &options, ElementType exact_rows) {
  const auto make = [&]<class Backend>() {
    return make_group<Backend, T, W>(options, exact_rows, W::key_bits, W::value_bits);
  };
  if constexpr (W::key_bits <= 4 && W::value_bits <= 4 && HeadDim % 64 == 0 && HeadDim <= 256) {
    const bool trellis = options.codes == Codes::trellis,
               shares = options.allocation.value_or(Allocation::head) != Allocation::head;
    if constexpr (HeadDim <= 192) {
      if (trellis && shares) return make.template operator()<CudaSharingTrellis<HeadDim>>();
      if (trellis) return make.template operator()<CudaTrellis<HeadDim>>();
    }
    if (shares && !trellis) return make.template operator()<CudaSharing<HeadDim>>();
  }
  return make.template operator()<CudaFor<HeadDim>>();
}

}  // namespace squat::inline SQUAT_API_NAMESPACE
