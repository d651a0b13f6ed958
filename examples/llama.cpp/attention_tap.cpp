#include "attention_tap.hpp"

#include <ggml-backend.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace squat_llama {
namespace {

/// The tensor whose memory it views.
const ggml_tensor *memory_of(const ggml_tensor &tensor) {
  return tensor.view_src != nullptr ? tensor.view_src : &tensor;
}

/// Elements of float in the memory of the host, channels one behind the other.
float *floats_of(const ggml_tensor &tensor) {
  const ggml_backend_buffer_t buffer = memory_of(tensor)->buffer;
  if (tensor.type != GGML_TYPE_F32 || tensor.nb[0] != sizeof(float) || tensor.ne[3] != 1 ||
      buffer == nullptr || !ggml_backend_buffer_is_host(buffer))
    throw std::invalid_argument(std::string(tensor.name) +
                                " is not rows of float of one sequence on the CPU");
  return static_cast<float *>(tensor.data);
}

squat::Index floats_in(std::size_t bytes) { return static_cast<squat::Index>(bytes / sizeof(float)); }

}  // namespace

bool AttentionTap::on_node(ggml_tensor *node, bool ask, void *tap) {
  const bool write = node->op == GGML_OP_SET_ROWS, attention = node->op == GGML_OP_FLASH_ATTN_EXT;
  if (ask) return write || attention;
  auto &self = *static_cast<AttentionTap *>(tap);
  try {
    if (write) self.keep_rows(*node);
    if (attention) self.handle(*node);
  } catch (...) {  // no exception may pass through the library's own frames
    self.error_ = std::current_exception();
  }
  return !self.error_;
}

void AttentionTap::begin() {
  written_.clear();
  layer_ = 0;
  error_ = nullptr;
}

void AttentionTap::end() {
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

/// A copy, as the graph may use the memory for something else before attention is computed.
void AttentionTap::keep_rows(const ggml_tensor &write) {
  const ggml_tensor &rows = *write.src[0];
  const float *const elements = floats_of(rows);
  Rows &kept = written_[memory_of(write)];
  kept.node = &rows;
  kept.elements.resize(static_cast<std::size_t>(rows.ne[0] * rows.ne[1]));
  for (squat::Index row = 0; row < rows.ne[1]; ++row) {
    std::memcpy(kept.elements.data() + row * rows.ne[0], elements + row * floats_in(rows.nb[1]),
                static_cast<std::size_t>(rows.ne[0]) * sizeof(float));
  }
}

const AttentionTap::Rows &AttentionTap::rows_in(const ggml_tensor &read) const {
  const auto found = written_.find(memory_of(read));
  if (found == written_.end())
    throw std::invalid_argument("it attends to rows that it has not written (layers that share keys)");
  return found->second;
}

void AttentionTap::handle(ggml_tensor &node) {
  const ggml_tensor &q = *node.src[0], &k = *node.src[1], &v = *node.src[2];
  try {
    if (memory_of(k) == memory_of(v))
      throw std::invalid_argument("values are part of keys (multi-head latent attention)");
    const Rows &keys = rows_in(k), &values = rows_in(v);
    const squat::Index tokens = q.ne[1];
    // [channels, tokens, heads], and [channels, heads, tokens] of the result.
    const squat::TensorView<const float> queries(floats_of(q), tokens, q.ne[2], q.ne[0],
                                                 floats_in(q.nb[1]), floats_in(q.nb[2]));
    const auto of_call = [&](const Rows &rows, const ggml_tensor &read) {
      if (static_cast<squat::Index>(rows.elements.size()) != tokens * read.ne[2] * read.ne[0])
        throw std::invalid_argument("the rows it has written are not those of its heads");
      return squat::TensorView<const float>(rows.elements.data(), tokens, read.ne[2], read.ne[0]);
    };
    handler_(layer_, {node,
                      *keys.node,
                      queries,
                      of_call(keys, k),
                      of_call(values, v),
                      {floats_of(node), tokens, node.ne[1], node.ne[0]}});
  } catch (const std::exception &error) {
    throw std::invalid_argument("attention layer " + std::to_string(layer_) + ": " + error.what());
  }
  ++layer_;
  written_.erase(memory_of(k));
  written_.erase(memory_of(v));
}

}  // namespace squat_llama
