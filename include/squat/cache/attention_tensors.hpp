#pragma once

// What a call that attends is made of.

#include "squat/core/config.hpp"
#include "squat/core/tensor.hpp"

namespace squat {

/// The tensors of a call of KVCache::attend(), by name. Scalar: float, half or bfloat16.
template <Element Scalar>
struct AttentionTensors {
  TensorView<const Scalar> q{};  ///< [tokens, query_heads, head_dim]
  TensorView<const Scalar> k{};  ///< [tokens, kv_heads, head_dim], appended; of no tokens: nothing is
  TensorView<const Scalar> v{};  ///< [tokens, kv_heads, value_dim]
  TensorView<Scalar> out{};      ///< [tokens, query_heads, value_dim]

  /// [tokens, query_heads, 1]: natural logarithms of the sums of exponentials of scores, sink logits
  /// among them, by which attention to parts of a context is merged (merge_attention()). Of no tokens:
  /// they are not written.
  TensorView<float> lse{};

  /// Queries see the tokens up to their own. false, where nothing is appended: every query sees all
  /// tokens of its sequence (the newest, where there is a window), of which there may be fewer than
  /// queries, as in cross-attention.
  bool causal = true;
};

}  // namespace squat
