#include "attention_shape.hpp"

#include <ggml-backend.h>

#include <stdexcept>
#include <string>

#include "rotary_of.hpp"

namespace squat_llama {
namespace {

[[noreturn]] void refuse(const std::string &why) {
  throw std::invalid_argument("squat serves no " + why);
}

/// Architectures whose graphs ask for memories of their own: sparse attention, keys compressed with
/// time.
bool has_own_memory(llm_arch arch) {
  switch (arch) {
    case LLM_ARCH_MINIMAX_M3:
    case LLM_ARCH_GLM_DSA:
    case LLM_ARCH_GLM5_NEXT:
    case LLM_ARCH_DEEPSEEK32:
    case LLM_ARCH_DEEPSEEK4:
    case LLM_ARCH_HY_V4:
    case LLM_ARCH_DOTS3NOTE:
    case LLM_ARCH_DFLASH:
    case LLM_ARCH_EAGLE3:
      return true;
    default:
      return false;
  }
}

bool is_on_cpu(const llama_model &model, int il) {
  const ggml_backend_dev_t device = model.dev_layer(il);
  return device == nullptr || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

}  // namespace

void check_served(const llama_model &model, const llama_memory_params &params,
                  const llama_cparams &cparams) {
  const llama_hparams &hparams = model.hparams;
  if (llama_model_has_encoder(&model) || !llama_model_has_decoder(&model))
    refuse("models with an encoder");
  if (llama_model_is_diffusion(&model) || !hparams.causal_attn || !cparams.causal_attn)
    refuse("attention that is not causal");
  if (llm_arch_is_recurrent(model.arch) || llm_arch_is_hybrid(model.arch))
    refuse("models with recurrent layers");
  if (hparams.is_mla()) refuse("latent attention (MLA)");
  if (has_own_memory(model.arch)) refuse("models with a memory of their own kind");
  if (hparams.n_layer_kv_from_start >= 0) refuse("layers that share keys");
  if (hparams.router_layer >= 0) refuse("models with a router layer");
  if (hparams.use_alibi || hparams.f_max_alibi_bias > 0) refuse("ALiBi");
  if (model.arch == LLM_ARCH_GROK) refuse("soft cap as Grok computes it");
  if (hparams.n_pos_per_embd() != 1) refuse("rotary embedding of several positions a token (M-RoPE)");
  if (hparams.swa_type != LLAMA_SWA_TYPE_NONE && hparams.swa_type != LLAMA_SWA_TYPE_STANDARD)
    refuse("attention windows other than the newest tokens");
  if (params.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT || params.mem_other != nullptr)
    refuse("contexts that draft for another");
  for (int il = 0; il < static_cast<int>(hparams.n_layer()); ++il) {
    if (!is_on_cpu(model, il))
      refuse("attention on a GPU (layer " + std::to_string(il) + "): use -ngl 0");
  }
}

squat::Options shape_of(const llm_graph_context &graph, const ggml_tensor &q, const ggml_tensor &k,
                        const ggml_tensor &v, const ggml_tensor *bias, const ggml_tensor *sinks,
                        float scale, int il) {
  const llama_hparams &hparams = graph.hparams;
  if (bias != nullptr) refuse("attention with a bias on scores");
  if (sinks != nullptr) refuse("sink logits");
  if (graph.cparams.training) refuse("training");
  for (const ggml_tensor *rows : {&q, &k, &v}) {
    if (rows->type != GGML_TYPE_F32 || rows->nb[0] != sizeof(float) || rows->ne[2] != graph.n_tokens)
      refuse("queries, keys and values other than [head_dim, heads, tokens] of float");
  }
  const bool windowed =
      hparams.swa_type != LLAMA_SWA_TYPE_NONE && hparams.is_swa(static_cast<std::uint32_t>(il));
  squat::Options shape{.query_heads = static_cast<int>(q.ne[1]),
                       .kv_heads = static_cast<int>(k.ne[1]),
                       .head_dim = static_cast<int>(k.ne[0]),
                       .value_dim = static_cast<int>(v.ne[0]),
                       .attention_scale = scale,
                       .attention_window = windowed ? static_cast<int>(hparams.n_swa) : 0,
                       .soft_cap = hparams.attn_soft_cap ? hparams.f_attn_logit_softcapping : 0.0f};
  // Where memory is only estimated, nothing of the model is loaded that could be turned.
  shape.rotary = {hparams.no_alloc ? squat::RotaryTable{} : rotary_of_keys(k, k.ne[0], k.ne[1])};
  return shape;
}

}  // namespace squat_llama
