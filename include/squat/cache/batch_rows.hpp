#pragma once

// Which rows of a call's tensors belong to its sequences.

#include <span>

#include "squat/cache/check.hpp"
#include "squat/cache/sequence_tokens.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::detail::inline SQUAT_API_NAMESPACE {

/// Throws Error where the entries of a batch do not stand among `rows`: one after another and all of
/// them, or where the entries say.
inline void check_rows(std::span<const SequenceTokens> batch, Index rows) {
  bool padded = false;
  Index end = 0;
  for (const SequenceTokens &entry : batch) {
    if (entry.first_row != SequenceTokens::behind_the_last) {
      padded = true;
      checks::check_range("batch.first_row", entry.first_row, end, rows);
      end = entry.first_row;
    }
    if (entry.tokens < 0 || entry.tokens > rows - end) {
      throw_invalid("batch.tokens", entry.tokens, "at least 0 and at most the rows left in the tensors,",
                    rows - end);
    }
    end += entry.tokens;
  }
  if (!padded && end != rows) throw_invalid("tokens", rows, "the tokens of the batch together,", end);
}

/// Calls visit(entry, first row) for every entry of a checked batch that has tokens.
template <class Visit>
void for_each_entry(std::span<const SequenceTokens> batch, Visit &&visit) {
  Index row = 0;
  for (const SequenceTokens &entry : batch) {
    if (entry.first_row != SequenceTokens::behind_the_last) row = entry.first_row;
    if (entry.tokens > 0) visit(entry, row);
    row += entry.tokens;
  }
}

/// Calls visit(first, count) for every run of neighbouring rows that a checked batch names.
template <class Visit>
void for_each_run(std::span<const SequenceTokens> batch, Visit &&visit) {
  Index first = 0, end = 0;
  for_each_entry(batch, [&](const SequenceTokens &entry, Index row) {
    if (row != end && end > first) visit(first, end - first);
    if (row != end) first = row;
    end = row + entry.tokens;
  });
  if (end > first) visit(first, end - first);
}

}  // namespace squat::detail::inline SQUAT_API_NAMESPACE
