#pragma once

// What an engine brings of whatever connects its ranks.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <span>

namespace squat {

/// How ranks reach each other. all_gather: `all` becomes what every rank handed over as `mine`, rank by
/// rank; broadcast: `bytes` become those of rank 0. Both are called by all ranks in the same order, with
/// the same sizes, and throw where another rank is gone.
template <class Transport>
concept RankTransport = requires(Transport &transport, std::span<const std::byte> mine,
                                 std::span<std::byte> all) {
  { transport.rank() } -> std::convertible_to<int>;
  { transport.ranks() } -> std::convertible_to<int>;
  transport.all_gather(mine, all);
  transport.broadcast(all);
};

/// A rank that is alone.
struct OneRank {
  /// Its own number.
  static int rank() { return 0; }
  /// How many there are.
  static int ranks() { return 1; }
  /// Copies.
  static void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) {
    std::copy(mine.begin(), mine.end(), all.begin());
  }
  /// Does nothing.
  static void broadcast(std::span<std::byte>) {}
};

}  // namespace squat
