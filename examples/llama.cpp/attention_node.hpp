#pragma once

// What the graph says of a layer's attention: all that a cache has to be told, from the nodes that
// llama.cpp itself computes with.

#include "attention_tap.hpp"
#include "squat/cache/options.hpp"

namespace squat_llama {

/// Heads, scale, soft cap, window and rotary embedding of a layer, from a call whose first token is the
/// first of its sequence. A window of as many tokens as the call has, or more, counts as none. Throws
/// std::invalid_argument, saying why, for attention that the cache does not compute: ALiBi, sink logits,
/// masks that are neither causal nor a window, keys of which parts alone are turned.
squat::Options shape_of(const Attention &attention);

/// Throws std::invalid_argument where queries of the call do not see exactly what they are to see: all
/// tokens up to their own, in a window of the newest ones where there is one (0: none). `first` is the
/// position of the call's first token.
void check_window(const Attention &attention, squat::Index first, squat::Index window);

}  // namespace squat_llama
