#pragma once

// The rotary embedding of a model's keys, as llama.cpp computes it.

#include <ggml.h>

#include "squat/coding/rotary_table.hpp"

namespace squat_llama {

/// What a node of the graph (GGML_OP_ROPE) turns. It is measured and not read from metadata: ggml turns
/// unit vectors with the node's own parameters and frequency factors, so that every scaling (linear,
/// YaRN, Llama 3's factors, a base of local layers) is what the model is run with. Throws
/// std::invalid_argument where channels are turned in a way that RotaryTable does not describe.
squat::RotaryTable rotary_of(const ggml_tensor &rope);

/// The same of keys [head_dim, heads, tokens], by the node that turns them. Empty where they do not turn
/// at all, as in every fourth layer of SmolLM3. Throws std::invalid_argument, too, where they are turned
/// in part, or changed behind their rotary embedding.
squat::RotaryTable rotary_of_keys(const ggml_tensor &keys, squat::Index head_dim, squat::Index heads);

}  // namespace squat_llama
