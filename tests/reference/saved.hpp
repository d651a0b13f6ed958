#pragma once

// Snapshots in memory.

#include <cstddef>
#include <vector>

#include "squat/squat.hpp"

namespace squat::test {

using Bytes = std::vector<std::byte>;

template <class Cache>
Bytes saved(Cache &cache, SequenceId sequence, bool codings = true) {
  Bytes bytes;
  cache.save(sequence, bytes, {.codings = codings});
  return bytes;
}

}  // namespace squat::test
