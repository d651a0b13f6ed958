#pragma once

// Who still needs a coding.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "squat/core/config.hpp"

namespace squat::detail {

/// Counts what holds each coding: the sequences whose pages it made, and the cache, for those that it
/// gives to new sequences. A coding goes with the last of them.
class CodingReferences {
 public:
  /// A coding that comes has one reference, of whoever asked for it. Allocates; on failure nothing has
  /// changed.
  void add(Index coding) {
    const auto name = static_cast<std::size_t>(coding);
    if (name >= references_.size()) references_.resize(name + 1, 0);
    SQUAT_ASSERT(references_[name] == 0);
    references_[name] = 1;
  }

  /// One more reference to a coding that has some.
  void retain(Index coding) {
    SQUAT_ASSERT(references(coding) > 0);
    ++references(coding);
  }

  /// Returns whether it was the last.
  bool release(Index coding) {
    SQUAT_ASSERT(references(coding) > 0);
    return --references(coding) == 0;
  }

  /// Calls visit(coding) once for each coding that has references.
  template <class Visit>
  void for_each(Visit &&visit) const {
    for (std::size_t name = 0; name < references_.size(); ++name) {
      if (references_[name] > 0) visit(static_cast<Index>(name));
    }
  }

 private:
  std::uint32_t &references(Index coding) { return references_[static_cast<std::size_t>(coding)]; }

  std::vector<std::uint32_t> references_;  // by the coding's name
};

}  // namespace squat::detail
