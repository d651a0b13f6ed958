#pragma once

// A call of the engine, as the model and the caches take it.

#include <span>
#include <vector>

#include "engine.hpp"

namespace engine {

struct Batch {
  /// Throws std::invalid_argument where there are more or fewer tokens than sequences are given.
  Batch(std::span<const int> tokens, std::span<const SequenceRows> sequences);

  /// What a cache takes of the rows [first, first + count), in which others may have some.
  struct OfCache {
    ModelCache *cache;
    squat::Index first;
    squat::Index count;
    std::vector<squat::SequenceTokens> sequences;
  };

  std::vector<Position> rows;
  std::vector<int> last;  // row of each sequence
  std::vector<OfCache> caches;
};

}  // namespace engine
