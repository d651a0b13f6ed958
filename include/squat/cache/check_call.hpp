#pragma once

// What a call's tensors have to be.

#include <type_traits>

#include "squat/cache/attention_tensors.hpp"
#include "squat/cache/check.hpp"
#include "squat/cache/options.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"

namespace squat::inline SQUAT_API_NAMESPACE::checks {

/// Throws Error for a tensor in memory of another device than a backend's (DeviceOperations).
template <class Operations, class Scalar>
void check_memory(const Operations &operations, const char *name, TensorView<Scalar> tensor) {
  if constexpr (requires { operations.check_memory(name, tensor.data); }) {
    if (tensor.tokens > 0) operations.check_memory(name, tensor.data);
  }
}

template <class S, class Operations>
void check_tensor(const Operations &operations, const char *name,
                  TensorView<const std::remove_const_t<S>> tensor, Index tokens, Index heads,
                  Index channels) {
  static_assert(Element<std::remove_const_t<S>>, "squat: tensors are float, half or bfloat16");
  check_shape(name, tensor, tokens, heads, channels);
  check_memory(operations, name, tensor);
}

/// What queries bring and get.
template <Element S, class Operations>
void check_queries(const Operations &operations, const Options &options,
                   const AttentionTensors<S> &tensors) {
  const auto &[q, k, v, out, lse, causal] = tensors;
  check_tensor<S>(operations, "q", q, q.tokens, options.query_heads, options.head_dim);
  check_tensor<S>(operations, "out", out, q.tokens, options.query_heads, options.value_dim);
  if (lse.tokens == 0) return;
  check_shape("lse", lse, q.tokens, options.query_heads, 1);
  check_memory(operations, "lse", lse);
}

template <Element S, class Operations>
void check_keys(const Operations &operations, const Options &options, const AttentionTensors<S> &tensors,
                Index tokens) {
  check_tensor<S>(operations, "k", tensors.k, tokens, options.kv_heads, options.head_dim);
  check_tensor<S>(operations, "v", tensors.v, tokens, options.kv_heads, options.value_dim);
}

}  // namespace squat::inline SQUAT_API_NAMESPACE::checks
