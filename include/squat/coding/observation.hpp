#pragma once

// Which rows of a call codings learn from, and in which frame: the rules that the statistics of every
// backend follow.

#include <algorithm>
#include <array>

#include "squat/core/config.hpp"

namespace squat {

/// Consecutive tokens of a call.
struct ObservedTokens {
  Index first = 0;  ///< row of the call's tensors
  Index count = 0;
  Index index = 0;     ///< tokens of the sequence before them
  Index position = 0;  ///< rotary position of the first
};

struct Observation {
  Index sinks = 0;  ///< of a sequence
  Index rows = 0;   ///< of the tile frame, 0 without one

  /// Those of the tokens whose keys count: sinks do not, for they are never coded.
  ObservedTokens keys(const ObservedTokens &tokens) const {
    const Index exempt = std::clamp<Index>(sinks - tokens.index, 0, tokens.count);
    return {tokens.first + exempt, tokens.count - exempt, tokens.index + exempt,
            tokens.position + exempt};
  }

  /// The row of its tile that the key of a token counts in, `index` tokens of the sequence before it.
  Index tile_row(Index index) const { return rows > 0 ? (index - sinks) % rows : 0; }

  /// Of how many tokens the attention of one with `index` tokens before it is weighed
  /// (attention_weights.hpp) in the name: of its own among the first, which are what codings learn from
  /// by default; then of a fourth, as the cost grows with the tokens before; of none where another
  /// stands for it. With a fourth from token 128 on, the KL of predictions is a tenth larger.
  static constexpr int weighed_tokens(Index index) {
    return index < all_weighed ? 1 : index % weighed_step == 0 ? weighed_step : 0;
  }
  static constexpr Index all_weighed = 512;
  static constexpr int weighed_step = 4;

  /// A query meets keys of all tiles behind it. Three positions stand for these, at 10, 50 and 90 % of
  /// the way from the first token: tiles begin there, and the query is turned back by each.
  static constexpr int query_bases = 3;
  std::array<Index, query_bases> bases(Index position) const {
    const auto base = [&](double share) {
      return static_cast<Index>(static_cast<double>(position) * share) / rows * rows;
    };
    return {base(.1), base(.5), base(.9)};
  }
};

}  // namespace squat
