#pragma once

// Non-owning views of what the engine hands over.

#include <type_traits>

#include "squat/core/config.hpp"

namespace squat {

/// A view of `[tokens, heads, head_dim]`. The channels of a head are
/// contiguous; tokens and heads may be strided (in elements), so that the rows
/// of a fused projection need no copy. A head's row is `data + token *
/// token_stride + head * head_stride`.
template <class Scalar>
struct TensorView {
  Scalar *data = nullptr;  ///< the first channel of the first head of token 0
  Index tokens = 0;        ///< rows
  Index heads = 0;         ///< of a row
  Index head_dim = 0;      ///< channels of a head
  Index token_stride = 0;  ///< elements from a token to the next
  Index head_stride = 0;   ///< elements from a head to the next

  /// Of no tokens.
  TensorView() = default;

  /// Contiguous: tokens, then heads, then channels.
  TensorView(Scalar *elements, Index token_count, Index head_count, Index channels)
      : TensorView(elements, token_count, head_count, channels, head_count * channels, channels) {}

  /// With strides, in elements.
  TensorView(Scalar *elements, Index token_count, Index head_count, Index channels, Index token_step,
             Index head_step)
      : data(elements),
        tokens(token_count),
        heads(head_count),
        head_dim(channels),
        token_stride(token_step),
        head_stride(head_step) {}

  /// A writable view reads as well.
  template <class Writable>
  requires(!std::is_const_v<Writable> && std::is_same_v<const Writable, Scalar>)
      TensorView(TensorView<Writable> view)
      : TensorView(view.data, view.tokens, view.heads, view.head_dim, view.token_stride,
                   view.head_stride) {}

  /// The channels of a token's head.
  Scalar *row(Index token, Index head) const { return data + token * token_stride + head * head_stride; }

  /// The rows `[first, first + count)` of this view.
  TensorView slice(Index first, Index count) const {
    return {data + first * token_stride, count, heads, head_dim, token_stride, head_stride};
  }
};

}  // namespace squat
