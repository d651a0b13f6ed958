#pragma once

// Which steps of a split context a captured graph does again.

#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/parallel/context_call.hpp"
#include "squat/parallel/split_sequence.hpp"

namespace squat::detail {

/// A graph holds what the host has decided: whose the token of each sequence is. Kernels count along, so
/// that it holds until that changes, or pages are packed by the host.
struct CapturedSteps {
  bool possible;   ///< as all ranks know
  bool one_part;   ///< each rank has one alone
  Index residual;  ///< Options::residual

  /// How many steps of a sequence are like the next.
  Index alike(const SplitSequence &sequence) const {
    return possible ? sequence.runs.steps_alike(sequence.lengths.front(), residual) : 0;
  }

  /// Whether two sequences may be in one such step: a cache finds what its parts append in one batch.
  bool together(const SplitSequence &a, const SplitSequence &b) const {
    return one_part || a.runs.part_of(a.lengths.front()) == b.runs.part_of(b.lengths.front());
  }

  /// Notes how long each sequence of a call that is captured may go on so. attends: whether the call
  /// does. Throws Error where others are not like it.
  void note(const ContextCall &call, bool attends) const {
    const SplitSequence *first = nullptr;
    for (const ContextCall::Entry &entry : call.entries()) {
      SplitSequence &sequence = *entry.sequence;
      sequence.check_between_steps();
      const Index steps = alike(sequence);
      if (first == nullptr) first = &sequence;
      if (!attends || entry.tokens != 1 || steps == 0 || !together(*first, sequence))
        throw Error(
            "squat: stream is being captured, and the call is no decode step that others are like: see "
            "SplitContext::steps_alike()");
      sequence.captured_to = sequence.lengths.front() + steps;
    }
  }
};

}  // namespace squat::detail
