#pragma once

// What the patch of llama.cpp calls: squat as a context's memory, beside llama.cpp's own KV caches.
// Written in the C++17 that llama.cpp is compiled as, without headers of squat's.

#include <memory>

#include "llama-graph.h"
#include "llama-memory.h"

struct llama_model;

namespace squat_llama {

/// Whether -ctk and -ctv name codings of squat's. Throws std::invalid_argument where one of them does
/// and the other does not.
bool is_wanted(const llama_memory_params &params);

/// The memory of a context, owned by the caller. Throws std::invalid_argument, saying why, for models
/// and contexts that it does not serve. cparams outlives it.
llama_memory_i *make_memory(const llama_model &model, const llama_memory_params &params,
                            const llama_cparams &cparams);

/// What models hand to build_attn() as the input of their attention. It has no tensors, as positions
/// and masks are the memory's own business, and `mctx` is null in it. Empty for the context of another
/// memory.
std::unique_ptr<llm_graph_input_attn_kv> make_input_kv(const llama_memory_context_i *context,
                                                       const llama_hparams &hparams,
                                                       const llama_cparams &cparams);
/// The same for models with layers that attend through a window.
std::unique_ptr<llm_graph_input_attn_kv_iswa> make_input_kv_iswa(const llama_memory_context_i *context,
                                                                 const llama_hparams &hparams,
                                                                 const llama_cparams &cparams);

/// The node that appends k and v to layer `il` of the memory and attends: [head_dim of values * heads,
/// tokens], from q, k and v of [head_dim, heads, tokens]. The first graph with a layer tells the memory
/// the layer's shape: throws std::invalid_argument, saying why, for one that it does not serve.
ggml_tensor *build_attention(const llm_graph_context &graph, ggml_tensor *q, ggml_tensor *k,
                             ggml_tensor *v, const ggml_tensor *bias, const ggml_tensor *sinks,
                             float scale, int il);

}  // namespace squat_llama
