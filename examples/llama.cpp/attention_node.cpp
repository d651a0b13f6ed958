#include "attention_node.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>

#include "rotary_of.hpp"

namespace squat_llama {
namespace {

constexpr ggml_fp16_t seen = 0, hidden = 0xfc00;  // what a mask adds to a score: 0, or minus infinity

/// Nodes that hand on what they are given in another shape.
bool hands_on(const ggml_tensor &node) {
  return node.op == GGML_OP_VIEW || node.op == GGML_OP_RESHAPE || node.op == GGML_OP_PERMUTE ||
         node.op == GGML_OP_CONT;
}

/// Whether a rotary embedding is among the nodes between the product with the layer's weights and this.
bool is_turned(const ggml_tensor *node, std::set<const ggml_tensor *> &visited) {
  if (node == nullptr || !visited.insert(node).second) return false;
  if (node->op == GGML_OP_ROPE) return true;
  if (node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_NONE) return false;
  return std::any_of(std::begin(node->src), std::end(node->src),
                     [&](const ggml_tensor *source) { return is_turned(source, visited); });
}

/// Empty where keys do not turn at all, as in every fourth layer of SmolLM3.
squat::RotaryTable rotary_of_keys(const Attention &attention) {
  const ggml_tensor *node = &attention.keys;
  while (hands_on(*node)) node = node->src[0];
  if (node->op != GGML_OP_ROPE) {
    std::set<const ggml_tensor *> visited;
    if (is_turned(node, visited))
      throw std::invalid_argument(
          "keys are changed behind their rotary embedding, or are turned in part");
    return {};
  }
  if (node->ne[0] != attention.k.head_dim || node->ne[1] != attention.k.heads)
    throw std::invalid_argument("the rotary embedding has other heads than the keys");
  return rotary_of(*node);
}

/// What the query of a token of the call sees of llama.cpp's cache: [mask.ne[0]], in float16.
const ggml_fp16_t *mask_row(const ggml_tensor &mask, squat::Index token) {
  return reinterpret_cast<const ggml_fp16_t *>(static_cast<const char *>(mask.data) +
                                               static_cast<std::size_t>(token) * mask.nb[1]);
}

const ggml_tensor &mask_of(const Attention &attention) {
  const ggml_tensor *const mask = attention.node.src[3];
  if (mask == nullptr) throw std::invalid_argument("it has no causal mask");
  if (mask->type != GGML_TYPE_F16 || mask->ne[1] < attention.q.tokens || mask->ne[2] != 1 ||
      mask->ne[3] != 1)
    throw std::invalid_argument("its mask is not one of all heads of one sequence");
  return *mask;
}

}  // namespace

void check_window(const Attention &attention, squat::Index first, squat::Index window) {
  const ggml_tensor &mask = mask_of(attention);
  for (squat::Index token = 0; token < attention.q.tokens; ++token) {
    const ggml_fp16_t *const row = mask_row(mask, token);
    const squat::Index own = first + token;
    const squat::Index from = window > 0 ? std::max<squat::Index>(0, own - window + 1) : 0;
    for (squat::Index key = 0; key < mask.ne[0]; ++key) {
      const bool visible = key >= from && key <= own;
      if (row[key] != (visible ? seen : hidden))
        throw std::invalid_argument("the query of token " + std::to_string(own) +
                                    (visible ? " does not see" : " sees") + " token " +
                                    std::to_string(key) + ", which is no window that the cache knows");
    }
  }
}

squat::Options shape_of(const Attention &attention) {
  const ggml_tensor &node = attention.node;
  // As ggml_flash_attn_ext() puts them: the scale of scores, ALiBi's bias, the soft cap.
  std::array<float, 3> parameters{};
  std::memcpy(parameters.data(), node.op_params, sizeof parameters);
  if (parameters[1] != 0)
    throw std::invalid_argument("it has ALiBi's bias, which this program does not serve");
  if (node.src[4] != nullptr)
    throw std::invalid_argument("it has sink logits, which this program does not serve");
  const ggml_tensor &mask = mask_of(attention);
  const ggml_fp16_t *const last = mask_row(mask, attention.q.tokens - 1);
  const squat::Index window = std::count(last, last + mask.ne[0], seen);
  squat::Options shape{.query_heads = static_cast<int>(attention.q.heads),
                       .kv_heads = static_cast<int>(attention.k.heads),
                       .head_dim = static_cast<int>(attention.k.head_dim),
                       .value_dim = static_cast<int>(attention.v.head_dim),
                       .attention_scale = parameters[0],
                       .attention_window = window < attention.q.tokens ? static_cast<int>(window) : 0,
                       .soft_cap = parameters[2]};
  check_window(attention, 0, shape.attention_window);
  shape.rotary = {rotary_of_keys(attention)};
  return shape;
}

bool same_shape(const squat::Options &a, const squat::Options &b) {
  const squat::RotaryTable &of_a = a.rotary.front(), &of_b = b.rotary.front();
  return a.query_heads == b.query_heads && a.kv_heads == b.kv_heads && a.head_dim == b.head_dim &&
         a.value_dim == b.value_dim && a.attention_scale == b.attention_scale &&
         a.attention_window == b.attention_window && a.soft_cap == b.soft_cap &&
         of_a.pairs == of_b.pairs && of_a.inverse_frequencies == of_b.inverse_frequencies;
}

}  // namespace squat_llama
