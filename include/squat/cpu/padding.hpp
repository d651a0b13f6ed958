#pragma once

// Memory for rows with zeros behind their channels, see cache/padded_rows.hpp.

#include <algorithm>
#include <array>
#include <cstddef>

#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cpu/buffer.hpp"
#include "squat/cpu/stream.hpp"

namespace squat::cpu::inline SQUAT_API_NAMESPACE {

class Padding {
 public:
  /// Contiguous rows of the extents of `sized`, good until the same place is asked for again. Allocates
  /// where the place was smaller.
  template <Element S>
  TensorView<S> rows(int place, TensorView<const S> sized, Stream) {
    const auto bytes = static_cast<std::size_t>(sized.tokens * sized.heads * sized.head_dim) * sizeof(S);
    Buffer<std::byte> &memory = memory_[static_cast<std::size_t>(place)];
    if (bytes > memory.size()) memory = Buffer<std::byte>(bytes);
    return {reinterpret_cast<S *>(memory.data()), sized.tokens, sized.heads, sized.head_dim};
  }

  /// The channels that both have; zeros in the others of `to`.
  template <Element S>
  void copy(TensorView<const S> from, TensorView<S> to, Stream) const {
    const Index both = std::min(from.head_dim, to.head_dim);
    for (Index token = 0; token < from.tokens; ++token) {
      for (Index head = 0; head < from.heads; ++head) {
        S *const end = std::copy_n(from.row(token, head), both, to.row(token, head));
        std::fill_n(end, to.head_dim - both, S(0));
      }
    }
  }

  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const Buffer<std::byte> &memory : memory_) sum += memory.bytes();
    return sum;
  }

 private:
  std::array<Buffer<std::byte>, 4> memory_;
};

/// What the kernels' head_dim is for heads of so many channels.
constexpr int padded_head_dim(int head_dim) { return (head_dim + 15) / 16 * 16; }

}  // namespace squat::cpu::inline SQUAT_API_NAMESPACE
