#pragma once

// Asking for memory before it is read.
//
// Pages lie anywhere, so no hardware foresees the next one. It is read as this
// one is, one line after another: a kernel that is told how many bytes lie
// between the two asks for the counterpart of every line it reads. Requests are
// spread over the arithmetic that way; in one burst they would wait for each
// other, and arithmetic for them.

#include <cstddef>
#include <cstdint>

#include "squat/core/config.hpp"

namespace squat::cpu {

/// Bytes from `here` to `there`; none where nothing is wanted next.
inline std::ptrdiff_t bytes_ahead(const void *here, const void *there) {
  return there == nullptr ? 0
                          : static_cast<std::ptrdiff_t>(reinterpret_cast<std::uintptr_t>(there) -
                                                        reinterpret_cast<std::uintptr_t>(here));
}

/// Asks for the line `bytes` ahead of the one that is read. Into the first-level cache,
/// which hands on to the second what it has no room for: a tenth of the time of exact
/// attention against asking the second alone (Zen 5). Always inlined: GCC drops calls
/// of functions that do nothing but this.
[[gnu::always_inline]] inline void prefetch_ahead(const void *line, std::ptrdiff_t bytes) {
  const std::uintptr_t address =
      reinterpret_cast<std::uintptr_t>(line) + static_cast<std::uintptr_t>(bytes);
  __builtin_prefetch(reinterpret_cast<const void *>(address));
}

/// Asks for a line that is read soon, into the first-level cache. It may lie past
/// the end of what is read.
[[gnu::always_inline]] inline void prefetch_near(const void *line) { __builtin_prefetch(line); }

/// prefetch_ahead() of all lines of `count` elements.
template <class Scalar>
[[gnu::always_inline]] inline void prefetch_ahead_all(const Scalar *x, Index count,
                                                      std::ptrdiff_t bytes) {
  for (Index i = 0; i < count; i += Index{64 / sizeof(Scalar)}) prefetch_ahead(x + i, bytes);
}

}  // namespace squat::cpu
