#pragma once

// What is not packed behind the sinks, and when a page is due.

#include "squat/core/config.hpp"

namespace squat {

/// At least the newest `residual` tokens of a sequence are not packed: its tail. Each time the tail
/// holds `residual + page_tokens`, the oldest `page_tokens` of them become a page.
template <class Count = Index>
struct TailRule {
  Count residual;
  Count page_tokens;

  /// Tokens of a tail of which a page is due; once the coding is there, no call leaves as many.
  SQUAT_HOST_DEVICE constexpr Count full() const { return residual + page_tokens; }

  /// Pages that are due of a tail of so many tokens.
  SQUAT_HOST_DEVICE constexpr Count due_pages(Count tokens) const {
    return tokens < full() ? 0 : (tokens - residual) / page_tokens;
  }
};

}  // namespace squat
