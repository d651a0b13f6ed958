#pragma once

// A sequence whose context is split, as a rank knows it.

#include <cstdint>
#include <vector>

#include "squat/cache/sequence_tokens.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/parallel/context_runs.hpp"

namespace squat::detail {

struct SplitSequence {
  ContextRuns runs;
  std::vector<Index> lengths{};     // of all parts, in each layer
  std::vector<SequenceId> local{};  // the cache's, of each own part
  Index captured_to = 0;            // tokens that it has once no captured step holds any more
  std::uint64_t last_call = 0;      // see NamedOnce

  /// Throws Error where layers have different tokens.
  void check_between_steps() const {
    for (const Index length : lengths) {
      if (length != lengths.front())
        throw Error("squat: sequence has more tokens in one layer than in another: finish the step");
    }
  }

  /// Throws Error where it cannot be cut behind `tokens` tokens in all layers.
  void check_cut(Index tokens) const {
    check_between_steps();
    if (tokens < 0 || tokens > lengths.front())
      throw_invalid("tokens", tokens, "0 to the length of the sequence,", lengths.front());
  }
};

}  // namespace squat::detail
