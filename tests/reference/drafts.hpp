#pragma once

// Trees of proposed tokens, by the row of each one's parent, or -1.

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

#include "squat/core/config.hpp"

namespace squat::test {

using Parents = std::vector<Index>;

/// `tokens`, each behind the one before.
inline Parents chain_of(Index tokens) {
  Parents parents(static_cast<std::size_t>(tokens));
  std::iota(parents.begin(), parents.end(), Index{-1});
  return parents;
}

/// `tokens` with parents at random, some of them roots.
inline Parents tree_of(Index tokens, unsigned seed) {
  Parents parents;
  for (Index i = 0; i < tokens; ++i) {
    seed = seed * 1664525u + 1013904223u;
    parents.push_back(static_cast<Index>((seed >> 8) % static_cast<unsigned>(i + 1)) - 1);
  }
  return parents;
}

/// Rows of the path that ends in `token`, root first.
inline std::vector<Index> path_to(const Parents &parents, Index token) {
  std::vector<Index> path;
  for (; token >= 0; token = parents[static_cast<std::size_t>(token)]) path.push_back(token);
  std::reverse(path.begin(), path.end());
  return path;
}

}  // namespace squat::test
