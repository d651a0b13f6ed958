#include "llama_memory_squat.hpp"

#include <ggml-backend.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "attention_shape.hpp"
#include "layer_groups.hpp"
#include "llama-batch.h"
#include "llama-impl.h"
#include "memory_sequences.hpp"
#include "node_threads.hpp"
#include "squat/model.hpp"

namespace squat_llama {
namespace {

/// Bits of -ctk or -ctv, 0 for types of llama.cpp's own caches.
int bits_of(ggml_type type) {
  switch (type) {
    case GGML_TYPE_SQUAT2:
      return 2;
    case GGML_TYPE_SQUAT3:
      return 3;
    case GGML_TYPE_SQUAT4:
      return 4;
    case GGML_TYPE_SQUAT8:
      return 8;
    case GGML_TYPE_SQUAT16:
      return 16;
    default:
      return 0;
  }
}

squat::Index elements_in(std::size_t bytes) { return static_cast<squat::Index>(bytes / sizeof(float)); }

/// [head_dim, heads, tokens] of ggml.
squat::TensorView<const float> rows_of(const ggml_tensor &tensor) {
  return {static_cast<const float *>(tensor.data),
          tensor.ne[2],
          tensor.ne[1],
          tensor.ne[0],
          elements_in(tensor.nb[2]),
          elements_in(tensor.nb[1])};
}

class MemorySquat;

/// A batch on its way through the memory, ubatch by ubatch.
class ContextSquat : public llama_memory_context_i {
 public:
  ContextSquat(MemorySquat &memory, llama_memory_status status, std::vector<llama_ubatch> ubatches = {})
      : memory_(memory), status_(status), ubatches_(std::move(ubatches)) {}

  bool next() override { return ++current_ < ubatches_.size(); }
  bool apply() override;
  const llama_ubatch &get_ubatch() const override { return ubatches_.at(current_); }
  llama_memory_status get_status() const override;

  MemorySquat &memory() const { return memory_; }

 private:
  MemorySquat &memory_;
  llama_memory_status status_;
  std::vector<llama_ubatch> ubatches_;
  std::size_t current_ = 0;
};

/// A ModelCache as the memory of a context.
class MemorySquat : public llama_memory_i {
 public:
  MemorySquat(const llama_model &model, const llama_memory_params &params, const llama_cparams &cparams)
      : model_(model),
        cparams_(cparams),
        key_bits_(bits_of(params.type_k)),
        value_bits_(bits_of(params.type_v)),
        shapes_(model.hparams.n_layer()) {
    for (std::size_t il = 0; il < shapes_.size(); ++il) nodes_.push_back({this, static_cast<int>(il)});
  }

  // ---- graphs

  ggml_tensor *build_attention(const llm_graph_context &graph, ggml_tensor *q, ggml_tensor *k,
                               ggml_tensor *v, const ggml_tensor *bias, const ggml_tensor *sinks,
                               float scale, int il) {
    std::optional<squat::Options> &shape = shapes_.at(static_cast<std::size_t>(il));
    if (!shape) {
      shape = shape_of(graph, *q, *k, *v, bias, sinks, scale, il);
      const llama_layer &layer = model_.layers.at(static_cast<std::size_t>(il));
      shape->keys_have_biases = layer.wk_b != nullptr || layer.wqkv_b != nullptr;
      const auto known = [](const std::optional<squat::Options> &of_layer) {
        return of_layer.has_value();
      };
      if (std::all_of(shapes_.begin(), shapes_.end(), known)) make_cache();
    }
    ggml_tensor *sources[] = {q, k, v};
    ggml_tensor *const out =
        ggml_custom_4d(graph.ctx0, GGML_TYPE_F32, v->ne[0] * q->ne[1], q->ne[2], 1, 1, sources, 3,
                       attend, GGML_N_TASKS_MAX, &nodes_[static_cast<std::size_t>(il)]);
    ggml_build_forward_expand(graph.gf, out);
    return out;
  }

  // ---- batches

  /// Ubatches have as many tokens of each of their sequences, those of one behind each other: the prompt
  /// of one sequence beside a token of others goes on in ubatches of its own.
  llama_memory_context_ptr init_batch(llama_batch_allocr &batch, std::uint32_t most_tokens,
                                      bool) override {
    error_ = false;
    batch.split_reset();
    std::vector<llama_ubatch> ubatches;
    while (true) {
      llama_ubatch ubatch = batch.split_equal(most_tokens, false, 0);
      if (ubatch.n_tokens == 0) break;
      ubatches.push_back(std::move(ubatch));
    }
    const llama_memory_status status = check(ubatches);
    return std::make_unique<ContextSquat>(*this, status, std::move(ubatches));
  }

  llama_memory_context_ptr init_full() override {
    return std::make_unique<ContextSquat>(*this, LLAMA_MEMORY_STATUS_SUCCESS);
  }

  llama_memory_context_ptr init_update(llama_context *, bool) override {
    return std::make_unique<ContextSquat>(*this, LLAMA_MEMORY_STATUS_NO_UPDATE);
  }

  /// Whether the graph that comes may be computed.
  bool begin(const llama_ubatch &ubatch) {
    return or_error([&] {
      batch_.clear();
      for (std::uint32_t s = 0; s < ubatch.n_seqs; ++s) {
        const std::uint32_t first = s * ubatch.n_seq_tokens;
        const squat::SequenceId sequence =
            sequences_.append(ubatch.seq_id[first][0], {ubatch.pos + first, ubatch.n_seq_tokens});
        batch_.push_back({.sequence = sequence,
                          .tokens = static_cast<squat::Index>(ubatch.n_seq_tokens),
                          .learn = !cparams_.warmup});
      }
    });
  }

  /// Whether something went wrong since init_batch().
  bool failed() const { return error_; }

  // ---- sequences

  /// Positions that are in the embeddings of tokens cannot be changed.
  bool get_can_shift() const override {
    return std::any_of(shapes_.begin(), shapes_.end(), [](const std::optional<squat::Options> &shape) {
      return shape && shape->rotary.front().pair_count() > 0;
    });
  }

  void clear(bool data) override {
    sequences_.clear();
    if (data && cache_) cache_->reset_learning();
  }

  bool seq_rm(llama_seq_id id, llama_pos p0, llama_pos p1) override {
    return sequences_.remove(id, {p0, p1});
  }
  void seq_cp(llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1) override {
    sequences_.copy(from, to, {p0, p1});
  }
  void seq_keep(llama_seq_id id) override { sequences_.keep(id); }
  void seq_add(llama_seq_id id, llama_pos p0, llama_pos p1, llama_pos by) override {
    sequences_.move(id, {p0, p1}, by);
  }
  void seq_div(llama_seq_id, llama_pos, llama_pos, int) override {
    GGML_ABORT("seq_div: squat's memory does not divide positions (self-extension)");
  }

  llama_pos seq_pos_min(llama_seq_id id) const override {
    const std::span<const llama_pos> positions = sequences_.positions(id);
    if (positions.empty()) return -1;
    // Pages that have left a window are gone, as they are in llama.cpp's caches of windows.
    const std::size_t window = narrowest_window();
    return positions[window == 0 || positions.size() <= window ? 0 : positions.size() - window];
  }

  llama_pos seq_pos_max(llama_seq_id id) const override {
    const std::span<const llama_pos> positions = sequences_.positions(id);
    return positions.empty() ? -1 : positions.back();
  }

  std::map<ggml_backend_buffer_type_t, std::size_t> memory_breakdown() const override {
    return {{ggml_backend_cpu_buffer_type(), cache_ ? cache_->memory_report().total() : 0}};
  }

  void state_write(llama_io_write_i &io, llama_seq_id id, llama_state_seq_flags) const override {
    sequences_.write(io, id);
  }
  void state_read(llama_io_read_i &io, llama_seq_id id, llama_state_seq_flags) override {
    sequences_.read(io, id, cparams_.n_ctx_seq);
  }

 private:
  struct Node {
    MemorySquat *memory;
    int layer;
  };

  void make_cache() {
    if (model_.hparams.no_alloc) return;  // only its size is asked for
    std::vector<squat::Options> shapes;
    for (const std::optional<squat::Options> &shape : shapes_) shapes.push_back(*shape);
    squat::ModelOptions options = group_layers(shapes, [&](const squat::Options &shape) {
      return squat::LayerGroup{.options = shape, .key_bits = key_bits_, .value_bits = value_bits_};
    });
    options.parallel = [this](int count, const squat::Task &task) { threads_.run(count, task); };
    sequences_.keep_in(cache_.emplace(options, squat::make_cpu_group));
    LLAMA_LOG_INFO("squat: keys of %d bits, values of %d bits, %zu layers in %zu groups\n", key_bits_,
                   value_bits_, shapes.size(), options.groups.size());
  }

  /// What llama_decode() says of the batch before anything is computed.
  llama_memory_status check(const std::vector<llama_ubatch> &ubatches) const {
    const auto refuse = [](const char *why) {
      LLAMA_LOG_ERROR("squat: %s\n", why);
      return LLAMA_MEMORY_STATUS_FAILED_COMPUTE;
    };
    if (!cache_) return refuse("the model's graph has layers without attention, which are not served");
    if (!cparams_.causal_attn) return refuse("attention that is not causal is not served");
    std::map<llama_seq_id, std::size_t> lengths;
    for (const llama_ubatch &ubatch : ubatches) {
      for (std::uint32_t token = 0; token < ubatch.n_tokens; ++token) {
        if (ubatch.n_seq_id[token] != 1) return refuse("a token of several sequences is not served");
        const bool first = token % ubatch.n_seq_tokens == 0;
        if (!first && ubatch.pos[token] != ubatch.pos[token - 1] + 1)
          return refuse("tokens of a batch must stand one behind the other");
        const llama_seq_id id = ubatch.seq_id[token][0];
        const std::size_t before = sequences_.positions(id).size();
        if (before + ++lengths[id] > cparams_.n_ctx_seq) return LLAMA_MEMORY_STATUS_FAILED_PREPARE;
      }
    }
    return LLAMA_MEMORY_STATUS_SUCCESS;
  }

  std::size_t narrowest_window() const {
    std::size_t narrowest = 0;
    for (const std::optional<squat::Options> &shape : shapes_) {
      const auto window = static_cast<std::size_t>(shape ? shape->attention_window : 0);
      if (window > 0 && (narrowest == 0 || window < narrowest)) narrowest = window;
    }
    return narrowest;
  }

  /// No exception may pass through ggml's frames. Whether there was none.
  template <class Run>
  bool or_error(Run &&run) {
    try {
      if (!error_) run();
    } catch (const std::exception &error) {
      LLAMA_LOG_ERROR("%s\n", error.what());
      error_ = true;
    }
    return !error_;
  }

  /// A ggml_custom_op_t.
  static void attend(ggml_tensor *out, int thread, int threads, void *node) {
    const Node &of_layer = *static_cast<const Node *>(node);
    MemorySquat &self = *of_layer.memory;
    if (thread != 0) return self.threads_.serve();
    self.or_error([&] {
      const squat::TensorView<const float> q = rows_of(*out->src[0]), k = rows_of(*out->src[1]),
                                           v = rows_of(*out->src[2]);
      self.cache_->attend(self.batch_, of_layer.layer, q, k, v,
                          {static_cast<float *>(out->data), q.tokens, q.heads, v.head_dim});
    });
    self.threads_.close(threads - 1);
  }

  const llama_model &model_;
  const llama_cparams &cparams_;
  const int key_bits_, value_bits_;
  std::vector<std::optional<squat::Options>> shapes_;  // [layers], as graphs have told them
  std::vector<Node> nodes_;                            // [layers]
  NodeThreads threads_;
  std::optional<squat::ModelCache> cache_;
  MemorySequences sequences_;
  std::vector<squat::SequenceTokens> batch_;  // of the ubatch in progress
  bool error_ = false;                        // in the batch in progress
};

bool ContextSquat::apply() { return memory_.begin(get_ubatch()); }

llama_memory_status ContextSquat::get_status() const {
  return memory_.failed() ? LLAMA_MEMORY_STATUS_FAILED_COMPUTE : status_;
}

const ContextSquat *squat_context(const llama_memory_context_i *context) {
  return dynamic_cast<const ContextSquat *>(context);
}

/// Without tensors there is nothing to fill, and nothing that would keep a graph from being reused.
template <class Input>
struct NoInput : Input {
  using Input::Input;
  void set_input(const llama_ubatch *) override {}
  bool can_reuse(const llm_graph_params &) override { return true; }
};

}  // namespace

bool is_wanted(const llama_memory_params &params) {
  const bool keys = bits_of(params.type_k) != 0, values = bits_of(params.type_v) != 0;
  if (keys != values)
    throw std::invalid_argument(std::string("keys are ") + ggml_type_name(params.type_k) + ", values " +
                                ggml_type_name(params.type_v) +
                                ": squat keeps both or none (-ctk, -ctv)");
  return keys;
}

llama_memory_i *make_memory(const llama_model &model, const llama_memory_params &params,
                            const llama_cparams &cparams) {
  check_served(model, params, cparams);
  return new MemorySquat(model, params, cparams);
}

std::unique_ptr<llm_graph_input_attn_kv> make_input_kv(const llama_memory_context_i *context,
                                                       const llama_hparams &hparams,
                                                       const llama_cparams &cparams) {
  if (!squat_context(context)) return nullptr;
  return std::make_unique<NoInput<llm_graph_input_attn_kv>>(hparams, cparams, nullptr);
}

std::unique_ptr<llm_graph_input_attn_kv_iswa> make_input_kv_iswa(const llama_memory_context_i *context,
                                                                 const llama_hparams &hparams,
                                                                 const llama_cparams &cparams) {
  if (!squat_context(context)) return nullptr;
  return std::make_unique<NoInput<llm_graph_input_attn_kv_iswa>>(hparams, cparams, nullptr);
}

ggml_tensor *build_attention(const llm_graph_context &graph, ggml_tensor *q, ggml_tensor *k,
                             ggml_tensor *v, const ggml_tensor *bias, const ggml_tensor *sinks,
                             float scale, int il) {
  return squat_context(graph.mctx)->memory().build_attention(graph, q, k, v, bias, sinks, scale, il);
}

}  // namespace squat_llama
