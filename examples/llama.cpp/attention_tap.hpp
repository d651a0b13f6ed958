#pragma once

// Where the attention of a model that llama.cpp runs can be taken over, layer by layer.

#include <ggml.h>

#include <exception>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "squat/core/tensor.hpp"

namespace squat_llama {

/// One layer's attention in a call of llama_decode(), which llama.cpp has just computed.
struct Attention {
  const ggml_tensor &node;  ///< GGML_OP_FLASH_ATTN_EXT, whose result kqv_out is a view of
  const ggml_tensor &keys;  ///< the node that k is the result of
  // Rows of the call's tokens: queries, keys and values as attention takes them, behind the rotary
  // embedding.
  squat::TensorView<const float> q, k, v;
  squat::TensorView<float> out;  ///< what the model goes on with
};

/// Follows the graph of a context by its cb_eval. Keys and values are what is written to the rows of
/// llama.cpp's own cache that a layer's attention reads, so that no model's names are relied on.
class AttentionTap {
 public:
  /// Layers with attention count from 0. An exception ends the call of llama_decode().
  using Handler = std::function<void(int layer, const Attention &)>;

  explicit AttentionTap(Handler handler) : handler_(std::move(handler)) {}

  /// llama_context_params::cb_eval; its user data is the tap.
  static bool on_node(ggml_tensor *node, bool ask, void *tap);

  /// Before a call of llama_decode().
  void begin();
  /// Behind it: throws what the handler threw.
  void end();

 private:
  struct Rows {
    const ggml_tensor *node = nullptr;
    std::vector<float> elements;  // [tokens, heads, channels]
  };

  void keep_rows(const ggml_tensor &write);
  const Rows &rows_in(const ggml_tensor &read) const;
  void handle(ggml_tensor &node);

  Handler handler_;
  std::map<const ggml_tensor *, Rows> written_;  // in this call, by the tensor of llama.cpp's cache
  int layer_ = 0;
  std::exception_ptr error_;
};

}  // namespace squat_llama
