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
  /// A coding of a layer that comes has one reference, of whoever asked for it. Allocates; on failure
  /// nothing has changed.
  void add(Index coding, int layer) {
    const auto name = static_cast<std::size_t>(coding);
    if (name >= codings_.size()) codings_.resize(name + 1);
    SQUAT_ASSERT(codings_[name].references == 0);
    codings_[name] = {1, layer};
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

  /// Calls visit(coding, layer) once for each coding that has references.
  template <class Visit>
  void for_each(Visit &&visit) const {
    for (std::size_t name = 0; name < codings_.size(); ++name) {
      if (codings_[name].references > 0) visit(static_cast<Index>(name), codings_[name].layer);
    }
  }

 private:
  struct Held {
    std::uint32_t references = 0;
    int layer = 0;
  };

  std::uint32_t &references(Index coding) {
    return codings_[static_cast<std::size_t>(coding)].references;
  }

  std::vector<Held> codings_;  // by name
};

}  // namespace squat::detail
