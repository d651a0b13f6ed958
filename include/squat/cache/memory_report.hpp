#pragma once

// What a cache's memory goes to.

#include <cstddef>

#include "squat/core/config.hpp"

namespace squat {

/// Bytes allocated and what they hold. Every figure in bits counts all that is
/// stored: codes, zeros, scales, padding, exact rows with their unused
/// capacity, statistics and what the coding learnt.
struct MemoryReport {
  std::size_t pages = 0;       ///< slabs of pages, free ones too
  std::size_t pages_used = 0;  ///< of these, pages that hold tokens
  std::size_t exact = 0;       ///< rows of sinks and windows
  std::size_t statistics = 0;  ///< moments of queries and keys, until the codings are learnt
  std::size_t bases = 0;       ///< what the codings learnt
  std::size_t workspace = 0;   ///< scratch of the operations

  Index packed_tokens = 0;  ///< summed over layers and sequences
  Index exact_tokens = 0;   ///< likewise

  double packed_bits_per_element = 0;  ///< of full pages, one of each layer
  double total_bits_per_element = 0;  ///< pages_used, exact, statistics and bases over all elements held

  std::size_t total() const { return pages + exact + statistics + bases + workspace; }
};

}  // namespace squat
