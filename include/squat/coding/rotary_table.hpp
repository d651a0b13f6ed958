#pragma once

// What an engine says of its rotary embedding (Su et al., RoFormer, 2021).

#include <utility>
#include <vector>

#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_API_NAMESPACE {

/// Which two channels a rotary embedding turns together.
enum class RotaryPairs {
  interleaved,  ///< channels 2 i and 2 i + 1 (Llama's own weights, GPT-J)
  halves,       ///< channels i and i + pairs (GPT-NeoX, Hugging Face)
};

/// The rotary embedding that the engine's keys and queries carry. Scaled kinds
/// (Llama 3, linear, YaRN) differ in their inverse frequencies alone. Channels
/// behind the last pair do not turn.
struct RotaryTable {
  std::vector<float> inverse_frequencies{};      ///< radians a position, one a pair; empty: no turn
  RotaryPairs pairs = RotaryPairs::interleaved;  ///< which channels are a pair

  /// Pairs that turn.
  Index pair_count() const { return static_cast<Index>(inverse_frequencies.size()); }

  /// The two channels of a pair.
  std::pair<Index, Index> channels(Index pair) const {
    if (pairs == RotaryPairs::interleaved) return {2 * pair, 2 * pair + 1};
    return {pair, pair + pair_count()};
  }
};

}  // namespace squat::inline SQUAT_API_NAMESPACE
