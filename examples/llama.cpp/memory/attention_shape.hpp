#pragma once

// What llama.cpp's models are to a cache, and which of them it does not serve.

#include "llama-graph.h"
#include "llama-memory.h"
#include "llama-model.h"
#include "squat/cache/options.hpp"

namespace squat_llama {

/// Throws std::invalid_argument, saying why, for what the memory does not serve of a model or context.
void check_served(const llama_model &model, const llama_memory_params &params,
                  const llama_cparams &cparams);

/// Heads, scale, soft cap, window and rotary embedding of a layer, from the nodes that build_attn() is
/// given. Throws std::invalid_argument, saying why, for attention that the memory does not compute.
squat::Options shape_of(const llm_graph_context &graph, const ggml_tensor &q, const ggml_tensor &k,
                        const ggml_tensor &v, const ggml_tensor *bias, const ggml_tensor *sinks,
                        float scale, int il);

}  // namespace squat_llama
