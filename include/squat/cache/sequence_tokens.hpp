#pragma once

// How callers name sequences, and their shares of a call.

#include <compare>
#include <cstdint>

#include "squat/core/config.hpp"

namespace squat {

/// Names a sequence of a cache. Never used again after remove_sequence().
struct SequenceId {
  std::uint64_t value = 0;  ///< 0 names none
  /// By value.
  auto operator<=>(const SequenceId &) const = default;
};

/// One sequence's share of a batched call: `tokens` rows of the call's tensors, which may be none.
struct SequenceTokens {
  static constexpr Index behind_the_last = -1;  ///< first_row: where the entry before ends

  SequenceId sequence;  ///< named once in a call
  Index tokens = 0;     ///< how many rows, 0 or more
  /// Where they begin; default: where the rows of the entry before end. Entries name rows in their
  /// order. As soon as one of them says where it begins, rows that no entry names are padding: they
  /// are neither read nor written.
  Index first_row = behind_the_last;
  /// Whether codings may learn from them: not from dummies that warm an engine up.
  bool learn = true;
};

}  // namespace squat
