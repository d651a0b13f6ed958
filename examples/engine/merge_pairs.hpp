#pragma once

// Byte-pair encoding (Sennrich et al., 2016): neighbours become one token, the pair of the least rank
// first.

#include <cstddef>
#include <optional>
#include <queue>
#include <vector>

namespace engine {

/// What a pair of tokens becomes. Pairs of equal rank are merged from left to right.
struct Merge {
  double rank;
  int token;
};

/// Merges tokens[first, end) until find(left, right), a std::optional<Merge>, knows no pair.
template <class Find>
void merge_pairs(std::vector<int> &tokens, std::size_t first, Find &&find) {
  struct Pair {
    double rank;
    std::size_t at, next;  // the two tokens' places
    int left, right, merged;
    bool operator<(const Pair &other) const {  // the queue gives its greatest first
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  constexpr int gone = -1;
  const std::size_t end = tokens.size();
  std::vector<std::size_t> before(end - first), behind(end - first);  // neighbours that are left
  for (std::size_t i = first; i < end; ++i) {
    before[i - first] = i - 1;
    behind[i - first] = i + 1;
  }
  std::priority_queue<Pair> pairs;
  const auto offer = [&](std::size_t at) {
    const std::size_t next = behind[at - first];
    if (next >= end) return;
    if (const std::optional<Merge> merge = find(tokens[at], tokens[next]))
      pairs.push({merge->rank, at, next, tokens[at], tokens[next], merge->token});
  };
  for (std::size_t i = first; i < end; ++i) offer(i);
  while (!pairs.empty()) {
    const Pair pair = pairs.top();
    pairs.pop();
    if (tokens[pair.at] != pair.left || tokens[pair.next] != pair.right ||
        behind[pair.at - first] != pair.next)
      continue;  // one of them has been merged since
    tokens[pair.at] = pair.merged;
    tokens[pair.next] = gone;
    const std::size_t next = behind[pair.next - first];
    behind[pair.at - first] = next;
    if (next < end) before[next - first] = pair.at;
    offer(pair.at);
    if (pair.at != first) offer(before[pair.at - first]);
  }
  std::size_t kept = first;
  for (std::size_t i = first; i < end; ++i)
    if (tokens[i] != gone) tokens[kept++] = tokens[i];
  tokens.resize(kept);
}

}  // namespace engine
