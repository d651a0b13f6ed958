#pragma once

// Rows that stay exact, as attention reads them.

#include "squat/core/config.hpp"

namespace squat::cpu {

/// Rows the cache keeps exact, `[kv_heads, capacity, head_dim]`, of which the
/// first `tokens` are filled.
template <class T>
struct ExactRows {
  const T *keys = nullptr;
  const T *values = nullptr;
  Index tokens = 0;
  Index capacity = 0;

  const T *key(Index head, Index token, Index head_dim) const {
    return keys + (head * capacity + token) * head_dim;
  }
  const T *value(Index head, Index token, Index head_dim) const {
    return values + (head * capacity + token) * head_dim;
  }
};

}  // namespace squat::cpu
