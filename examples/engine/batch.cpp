#include "batch.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace engine {

Batch::Batch(std::span<const int> tokens, std::span<const SequenceRows> sequences) {
  squat::Index row = 0;
  for (const SequenceRows &next : sequences) {
    auto part = std::find_if(caches.begin(), caches.end(),
                             [&](const OfCache &other) { return other.cache == next.cache; });
    if (part == caches.end()) part = caches.insert(part, {next.cache, row, 0, {}});
    part->sequences.push_back({next.sequence, next.tokens, row - part->first});
    const squat::Index past = next.cache->length(next.sequence), end = row + next.tokens;
    if (next.tokens < 1 || end > static_cast<squat::Index>(tokens.size())) break;
    part->count = end - part->first;
    for (squat::Index i = 0; i < next.tokens; ++i, ++row)
      rows.push_back({tokens[static_cast<std::size_t>(row)], static_cast<int>(past + i)});
    last.push_back(static_cast<int>(row) - 1);
  }
  if (last.size() != sequences.size() || rows.size() != tokens.size())
    throw std::invalid_argument(std::to_string(tokens.size()) +
                                " tokens are not those of the sequences, one of each at least");
}

}  // namespace engine
