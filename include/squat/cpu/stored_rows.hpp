#pragma once

// Rows that are not packed, as attention reads them.

#include <concepts>
#include <cstdint>

#include "squat/core/config.hpp"

namespace squat::cpu {

/// An element of a row: T, exact, or a byte (kernels/byte_row.hpp).
template <class Scalar>
concept RowElement = Element<Scalar> || std::same_as<Scalar, std::int8_t>;

/// Rows of sinks or of a tail, `[kv_heads, capacity, row_elements]`, of which the first `tokens` are
/// filled.
template <RowElement Scalar>
struct StoredRows {
  const Scalar *keys = nullptr;
  const Scalar *values = nullptr;
  Index tokens = 0;
  Index capacity = 0;
  Index row_elements = 0;

  const Scalar *key(Index head, Index token) const {
    return keys + (head * capacity + token) * row_elements;
  }
  const Scalar *value(Index head, Index token) const {
    return values + (head * capacity + token) * row_elements;
  }
};

}  // namespace squat::cpu
