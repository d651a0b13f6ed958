#pragma once

// That a call names each of its sequences once.

#include <cstdint>
#include <string_view>
#include <utility>

#include "squat/cache/sequence_tokens.hpp"
#include "squat/core/error.hpp"

namespace squat::detail {

/// Every sequence keeps the number of the last call that named it: `last_call`, 0 before the first. So
/// one that a call names twice is found without comparing it with the others.
class NamedOnce {
 public:
  /// The next call begins.
  void begin() { ++call_; }

  /// It names a sequence in `argument`. Throws Error where it has done so before.
  template <class Sequence>
  void name(std::string_view argument, SequenceId id, Sequence &sequence) const {
    if (std::exchange(sequence.last_call, call_) == call_)
      throw_invalid(argument, id.value, "named once");
  }

 private:
  std::uint64_t call_ = 0;
};

}  // namespace squat::detail
