// Caches of ggml's types, and ggml_flash_attn_ext() over them: a graph of one node a layer, on ggml's
// CPU backend. ik_llama.cpp's ggml and that of llama.cpp itself have these functions in common.

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>
#if __has_include(<ggml-cpu.h>)
#include <ggml-cpu.h>  // of llama.cpp
#endif

#include <cmath>
#include <stdexcept>
#include <utility>

#include "contender.hpp"

namespace bench {
namespace {

struct Free {
  void operator()(ggml_context *context) const { ggml_free(context); }
  void operator()(ggml_backend *backend) const { ggml_backend_free(backend); }
  void operator()(ggml_backend_buffer *buffer) const { ggml_backend_buffer_free(buffer); }
};

template <class T>
using Owned = std::unique_ptr<T, Free>;

using Backend = std::shared_ptr<ggml_backend>;

/// Room for descriptions of tensors and graphs; what they hold lies in a buffer of the backend's.
Owned<ggml_context> make_context(std::size_t tensors, std::size_t graphs = 0) {
  constexpr std::size_t graph_nodes = 16;
  const std::size_t bytes =
      tensors * ggml_tensor_overhead() + graphs * ggml_graph_overhead_custom(graph_nodes, false);
  Owned<ggml_context> context(ggml_init({.mem_size = bytes, .mem_buffer = nullptr, .no_alloc = true}));
  if (!context) throw std::runtime_error("ggml: no context is left, of GGML_MAX_CONTEXTS");
  return context;
}

Owned<ggml_backend_buffer> allocate(ggml_context *context, ggml_backend *backend) {
  Owned<ggml_backend_buffer> buffer(ggml_backend_alloc_ctx_tensors(context, backend));
  if (!buffer) throw std::bad_alloc();
  return buffer;
}

ggml_cgraph *graph_of(ggml_context *context, ggml_tensor *node) {
  ggml_cgraph *graph = ggml_new_graph_custom(context, 16, false);
  ggml_build_forward_expand(graph, node);
  return graph;
}

void compute(ggml_backend *backend, ggml_cgraph *graph) {
  if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
    throw std::runtime_error("ggml: a graph failed");
  }
}

void set_floats(ggml_tensor *tensor, const float *elements) {
  ggml_backend_tensor_set(tensor, elements, 0, ggml_nbytes(tensor));
}

class GgmlCache : public Contender {
 public:
  GgmlCache(Backend backend, ggml_type type, RowOrder order, const Content &content)
      : backend_(std::move(backend)), order_(order), tokens_(content.tokens) {
    const auto layers = static_cast<std::size_t>(content.layers);
    context_ = make_context(2 * layers);
    const auto make = [&] {
      return order_ == RowOrder::by_token
                 ? ggml_new_tensor_3d(context_.get(), type, head_dim, kv_heads, tokens_)
                 : ggml_new_tensor_3d(context_.get(), type, head_dim, tokens_, kv_heads);
    };
    for (std::size_t layer = 0; layer < layers; ++layer) {
      k_.push_back(make());
      v_.push_back(make());
    }
    buffer_ = allocate(context_.get(), backend_.get());
    store(content.rows.k, k_);
    store(content.rows.v, v_);
  }

  Attention attention(squat::TensorView<const float> q) override {
    const auto call = std::make_shared<Call>();
    const std::size_t layers = k_.size();
    // Queries, their view, the mask; keys' and values' views and the node of each layer.
    call->context = make_context(3 + 3 * layers, layers);
    ggml_context *context = call->context.get();
    ggml_tensor *queries = ggml_new_tensor_3d(context, GGML_TYPE_F32, head_dim, query_heads, q.tokens);
    ggml_tensor *mask = ggml_new_tensor_2d(context, GGML_TYPE_F16, tokens_, (q.tokens + 63) / 64 * 64);
    ggml_tensor *by_head = ggml_permute(context, queries, 0, 2, 1, 3);
    std::vector<ggml_tensor *> outs;
    for (std::size_t layer = 0; layer < layers; ++layer) {
      outs.push_back(ggml_flash_attn_ext(context, by_head, by_head_and_token(context, k_[layer]),
                                         by_head_and_token(context, v_[layer]), mask,
                                         1 / std::sqrt(float{head_dim}), 0, 0));
      call->graphs.push_back(graph_of(context, outs.back()));
    }
    call->buffer = allocate(context, backend_.get());
    set_floats(queries, q.data);
    set_causal(mask, q.tokens);
    return {[this, call](int layer) {
              compute(backend_.get(), call->graphs[static_cast<std::size_t>(layer)]);
            },
            {static_cast<const float *>(outs[0]->data), q.tokens, query_heads, head_dim}};
  }

  double bytes_per_token() const override {
    return static_cast<double>(ggml_nbytes(k_[0]) + ggml_nbytes(v_[0])) / static_cast<double>(tokens_);
  }

 private:
  struct Call {
    Owned<ggml_context> context;
    Owned<ggml_backend_buffer> buffer;
    std::vector<ggml_cgraph *> graphs;  // one a layer
  };

  /// [kv_heads, tokens, head_dim] of a cache, whichever order its rows have.
  ggml_tensor *by_head_and_token(ggml_context *context, ggml_tensor *cache) const {
    return order_ == RowOrder::by_token ? ggml_permute(context, cache, 0, 2, 1, 3) : cache;
  }

  /// Converts the first rows to the type of `caches` by ggml's own copy, as llama.cpp fills its cache.
  void store(squat::test::Tensor<float> &rows, const std::vector<ggml_tensor *> &caches) {
    const Owned<ggml_context> context = make_context(2 + caches.size(), caches.size());
    ggml_tensor *source = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, head_dim, kv_heads, tokens_);
    ggml_tensor *ordered =
        order_ == RowOrder::by_token ? source : ggml_permute(context.get(), source, 0, 2, 1, 3);
    std::vector<ggml_cgraph *> graphs;
    for (ggml_tensor *cache : caches) {
      graphs.push_back(graph_of(context.get(), ggml_cpy(context.get(), ordered, cache)));
    }
    const Owned<ggml_backend_buffer> buffer = allocate(context.get(), backend_.get());
    set_floats(source, rows.elements.data());
    for (ggml_cgraph *graph : graphs) compute(backend_.get(), graph);
  }

  /// mask: [queries and padding, tokens], what is added to scores.
  void set_causal(ggml_tensor *mask, Index queries) const {
    const ggml_fp16_t seen = ggml_fp32_to_fp16(0), hidden = ggml_fp32_to_fp16(-INFINITY);
    std::vector<ggml_fp16_t> rows(static_cast<std::size_t>(ggml_nelements(mask)), hidden);
    for (Index i = 0; i < queries; ++i) {
      std::fill_n(rows.begin() + i * tokens_, tokens_ - queries + i + 1, seen);
    }
    ggml_backend_tensor_set(mask, rows.data(), 0, ggml_nbytes(mask));
  }

  Backend backend_;
  RowOrder order_;
  Index tokens_;
  Owned<ggml_context> context_;
  Owned<ggml_backend_buffer> buffer_;
  std::vector<ggml_tensor *> k_, v_;  // of [tokens, kv_heads] or [kv_heads, tokens] rows, one a layer
};

ggml_type type_of(const std::string &name) {
  for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
    const auto type = static_cast<ggml_type>(i);
    const char *known = ggml_type_name(type);
    if (known != nullptr && known == name) return type;
  }
  throw std::invalid_argument("ggml knows no type " + name);
}

}  // namespace

std::vector<Coding> ggml_codings(const std::vector<std::string> &types, RowOrder order, int threads) {
  const Backend backend(ggml_backend_cpu_init(), Free());
  ggml_backend_cpu_set_n_threads(backend.get(), threads);
  std::vector<Coding> codings;
  for (const std::string &name : types) {
    const ggml_type type = type_of(name);
    codings.push_back({"ggml", order == RowOrder::by_token ? name : name + " by head",
                       !ggml_is_quantized(type), [=](const Content &content) {
                         return std::make_unique<GgmlCache>(backend, type, order, content);
                       }});
  }
  return codings;
}

std::string ggml_instruction_set() {
  std::string sets;
  const auto add = [&](int has, const char *name) {
    if (has != 0) sets += (sets.empty() ? "" : " ") + std::string(name);
  };
  add(ggml_cpu_has_avx2(), "avx2");
  add(ggml_cpu_has_avx512(), "avx512");
  add(ggml_cpu_has_avx512_vbmi(), "avx512_vbmi");
  add(ggml_cpu_has_avx512_vnni(), "avx512_vnni");
  add(ggml_cpu_has_avx512_bf16(), "avx512_bf16");
  add(ggml_cpu_has_neon(), "neon");
  return sets;
}

std::string ggml_source() { return BENCH_GGML_SOURCE; }

}  // namespace bench
