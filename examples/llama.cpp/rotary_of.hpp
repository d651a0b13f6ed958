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

}  // namespace squat_llama
