#pragma once

// What a cache's memory goes to.

#include <cstddef>

#include "squat/core/config.hpp"

namespace squat {

/// Pages that would be free, and their bytes.
struct FreedPages {
  std::size_t pages = 0;  ///< over all layers
  std::size_t bytes = 0;  ///< of these pages
};

/// Bytes allocated and what they hold. Every figure in bits counts all that is
/// stored: codes, zeros, scales, padding, exact rows with their unused
/// capacity, statistics and what the coding learnt.
struct MemoryReport {
  std::size_t pages = 0;       ///< slabs of pages, free ones too
  std::size_t pages_used = 0;  ///< of these, pages that hold tokens; a shared page counts once
  std::size_t exact = 0;       ///< rows of sinks and windows
  std::size_t statistics = 0;  ///< moments of queries and keys, until the codings are learnt
  std::size_t bases = 0;       ///< what the codings learnt
  std::size_t workspace = 0;   ///< scratch of the operations

  std::size_t shared_pages = 0;      ///< how many pages more than one sequence holds
  std::size_t saved_by_sharing = 0;  ///< bytes of pages that sequences hold beyond pages_used: what it
                                     ///< would grow by if each had pages of its own

  Index packed_tokens = 0;  ///< summed over layers and sequences
  Index exact_tokens = 0;   ///< likewise

  double packed_bits_per_element = 0;  ///< of full pages, one of each layer
  /// pages_used, exact, statistics and bases over all elements held. Sharing is no coding: a shared page
  /// counts for each sequence that holds it here, its bytes like its elements.
  double total_bits_per_element = 0;

  /// Counts and bytes of another cache come to these. The figures in bits are left as they are.
  void add(const MemoryReport &other) {
    pages += other.pages;
    pages_used += other.pages_used;
    exact += other.exact;
    statistics += other.statistics;
    bases += other.bases;
    workspace += other.workspace;
    shared_pages += other.shared_pages;
    saved_by_sharing += other.saved_by_sharing;
    packed_tokens += other.packed_tokens;
    exact_tokens += other.exact_tokens;
  }

  /// All bytes that are allocated.
  std::size_t total() const { return pages + exact + statistics + bases + workspace; }
};

}  // namespace squat
