#include "attention_node.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "rotary_of.hpp"

namespace squat_llama {
namespace {

constexpr ggml_fp16_t seen = 0, hidden = 0xfc00;  // what a mask adds to a score: 0, or minus infinity

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
  shape.rotary = {rotary_of_keys(attention.keys, attention.k.head_dim, attention.k.heads)};
  return shape;
}

}  // namespace squat_llama
