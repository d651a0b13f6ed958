#include "cuda_engine.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/make_group.hpp"
#include "dequantize.hpp"

namespace engine::cuda {
namespace {

const Tensor &find(const Gguf &file, const std::string &name, int outputs, int inputs) {
  return file.tensor(name, {static_cast<std::uint64_t>(inputs), static_cast<std::uint64_t>(outputs)});
}

DeviceArray<float> read_vector(const Gguf &file, const std::string &name, int size) {
  const auto elements = dequantize(file.tensor(name, {static_cast<std::uint64_t>(size)}));
  return DeviceArray<float>(std::span<const float>(elements));
}

/// Of queries, keys and values, one behind the other.
DeviceArray<float> read_biases(const Gguf &file, const std::string &prefix, const Config &config) {
  std::vector<float> biases;
  const auto read = [&](const char *name, int heads) {
    const std::vector<float> next = dequantize(
        file.tensor(prefix + name + ".bias", {static_cast<std::uint64_t>(heads * config.head_dim)}));
    biases.insert(biases.end(), next.begin(), next.end());
  };
  read("attn_q", config.query_heads);
  read("attn_k", config.kv_heads);
  read("attn_v", config.kv_heads);
  return DeviceArray<float>(std::span<const float>(biases));
}

/// A squat::MakeGroup. Throws std::invalid_argument where the widths were not compiled in.
std::unique_ptr<squat::GroupCache> make_group(const squat::Options &options,
                                              squat::ElementType exact_rows, int key_bits,
                                              int value_bits) {
#define WIDTHS(key_bits_, value_bits_)                    \
  if (key_bits == key_bits_ && value_bits == value_bits_) \
    return make_group_of<key_bits_, value_bits_>(options, exact_rows);
  ENGINE_WIDTHS
#undef WIDTHS
  throw std::invalid_argument(
      "keys of " + std::to_string(key_bits) + " and values of " + std::to_string(value_bits) +
      " bits were not compiled for cuda; CMake's ENGINE_CUDA_WIDTHS names what was");
}

std::size_t size_of(int rows, int width) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(width);
}

}  // namespace

CudaEngine::CudaEngine(const Gguf &file)
    : config_(read_config(file)),
      norm_(read_vector(file, "output_norm.weight", config_.embedding)),
      inverse_frequencies_(std::span<const float>(config_.inverse_frequencies)),
      local_inverse_frequencies_(std::span<const float>(config_.local_inverse_frequencies)) {
  const auto read = [&](const char *name) {
    return Linear({&find(file, name, config_.vocabulary, config_.embedding)}, config_.embedding);
  };
  embedding_ = read("token_embd.weight");
  if (file.has_tensor("output.weight")) output_ = read("output.weight");
  for (int i = 0; i < config_.layers; ++i) layers_.push_back(read_layer(file, i));
}

std::unique_ptr<ModelCache> CudaEngine::make_cache(const squat::ModelOptions &options) {
  return std::make_unique<ModelCache>(options, make_group);
}

CudaEngine::Layer CudaEngine::read_layer(const Gguf &file, int index) const {
  const Config &c = config_;
  const Differences &d = c.differences;
  const std::string prefix = "blk." + std::to_string(index) + ".";
  const auto tensor = [&](const char *name, int outputs, int inputs) {
    return &find(file, prefix + name + ".weight", outputs, inputs);
  };
  const auto norm = [&](bool there, const char *name, int size) {
    return there ? read_vector(file, prefix + name + ".weight", size) : DeviceArray<float>();
  };
  const int heads = c.query_heads * c.head_dim, kv_heads = c.kv_heads * c.head_dim;
  return {.attention_norm = norm(true, "attn_norm", c.embedding),
          .feed_forward_norm = norm(true, "ffn_norm", c.embedding),
          .qkv_bias = d.biases ? read_biases(file, prefix, c) : DeviceArray<float>(),
          .query_norm = norm(d.head_norms, "attn_q_norm", c.head_dim),
          .key_norm = norm(d.head_norms, "attn_k_norm", c.head_dim),
          .post_attention_norm = norm(d.post_norms, "post_attention_norm", c.embedding),
          .post_feed_forward_norm = norm(d.post_norms, "post_ffw_norm", c.embedding),
          .qkv = Linear({tensor("attn_q", heads, c.embedding), tensor("attn_k", kv_heads, c.embedding),
                         tensor("attn_v", kv_heads, c.embedding)},
                        c.embedding),
          .output = Linear({tensor("attn_output", c.embedding, heads)}, heads),
          .gate_up = Linear({tensor("ffn_gate", c.feed_forward, c.embedding),
                             tensor("ffn_up", c.feed_forward, c.embedding)},
                            c.embedding),
          .down = Linear({tensor("ffn_down", c.embedding, c.feed_forward)}, c.feed_forward)};
}

void CudaEngine::reserve(std::size_t rows, std::size_t wanted) {
  const auto width = [](int elements) { return static_cast<std::size_t>(elements); };
  const int widest = std::max({config_.embedding, config_.feed_forward, mixed_width()});
  tokens_.reserve(rows);
  positions_.reserve(rows);
  wanted_.reserve(wanted);
  x_.reserve(rows * width(config_.embedding));
  qkv_.reserve(rows * width(qkv_width()));
  mixed_.reserve(rows * width(mixed_width()));
  if (config_.differences.post_norms) delta_.reserve(rows * width(config_.embedding));
  gate_up_.reserve(rows * width(2 * config_.feed_forward));
  split_.reserve(rows * width(widest));
  device_logits_.reserve(wanted * width(config_.vocabulary));
  logits_.resize(static_cast<Eigen::Index>(wanted), config_.vocabulary);
}

void CudaEngine::upload(std::span<const Position> rows, std::span<const int> wanted) {
  std::vector<int> tokens, positions;
  for (const Position &row : rows) {
    tokens.push_back(row.token);
    positions.push_back(row.position);
  }
  const auto copy = [&](std::span<const int> from, DeviceArray<int> &to) {
    check(cudaMemcpyAsync(to.data(), from.data(), from.size_bytes(), cudaMemcpyHostToDevice),
          "cudaMemcpyAsync");
  };
  copy(tokens, tokens_);
  copy(positions, positions_);
  copy(wanted, wanted_);
}

Heads CudaEngine::heads_of(int layer) const {
  const Config &c = config_;
  const Layer &of = layers_[static_cast<std::size_t>(layer)];
  return {.query_heads = c.query_heads,
          .kv_heads = c.kv_heads,
          .head_dim = c.head_dim,
          .bias = of.qkv_bias.data(),
          .query_norm = of.query_norm.data(),
          .key_norm = of.key_norm.data(),
          .epsilon = c.rms_epsilon,
          .positions = positions_.data(),
          .inverse_frequencies =
              (c.is_local(layer) ? local_inverse_frequencies_ : inverse_frequencies_).data(),
          .pairs = c.rotary_dim / 2,
          .pairing = c.differences.rotary_pairs};
}

/// The rows of q, k and v are those of one product, strided: a cache takes them where they are.
void CudaEngine::attend(const Batch::OfCache &part, int layer) const {
  const Config &c = config_;
  const auto view = [&](float *data, int heads, int width) {
    return squat::TensorView<float>(data + part.first * width, part.count, heads, c.head_dim, width,
                                    c.head_dim);
  };
  float *const q = qkv_.data();
  float *const k = q + c.query_heads * c.head_dim;
  float *const v = k + c.kv_heads * c.head_dim;
  part.cache->attend(part.sequences, layer, view(q, c.query_heads, qkv_width()),
                     view(k, c.kv_heads, qkv_width()), view(v, c.kv_heads, qkv_width()),
                     view(mixed_.data(), c.query_heads, mixed_width()));
}

void CudaEngine::add(const Linear &weights, const DeviceArray<float> &post_norm, int rows) {
  if (!config_.differences.post_norms) return weights.add(blas_, split_, rows, x_.data());
  weights.apply(blas_, split_, rows, delta_.data());
  add_normalized(delta_.data(), post_norm.data(), config_.rms_epsilon, rows, config_.embedding,
                 x_.data());
}

void CudaEngine::feed_forward(const Layer &layer, int rows) {
  const Config &c = config_;
  normalize(x_.data(), nullptr, layer.feed_forward_norm.data(), c.rms_epsilon, rows, c.embedding,
            split_);
  layer.gate_up.apply(blas_, split_, rows, gate_up_.data());
  gate(gate_up_.data(), c.differences.activation, rows, c.feed_forward, split_);
  add(layer.down, layer.post_feed_forward_norm, rows);
}

template <class Attend>
const RowMatrix &CudaEngine::run_layers(const Batch &batch, Attend &&attend_rows) {
  check_tokens(config_, batch.rows);
  const Config &c = config_;
  const int rows = static_cast<int>(batch.rows.size()), results = static_cast<int>(batch.last.size());
  reserve(batch.rows.size(), batch.last.size());
  upload(batch.rows, batch.last);
  const float scale = c.differences.scaled_embedding ? std::sqrt(static_cast<float>(c.embedding)) : 1;
  embed(embedding_.weights(), tokens_.data(), scale, rows, c.embedding, x_.data());
  for (int i = 0; i < c.layers; ++i) {
    const Layer &layer = layers_[static_cast<std::size_t>(i)];
    normalize(x_.data(), nullptr, layer.attention_norm.data(), c.rms_epsilon, rows, c.embedding, split_);
    layer.qkv.apply(blas_, split_, rows, qkv_.data());
    finish_heads(qkv_.data(), rows, heads_of(i));
    attend_rows(i);
    split(mixed_.data(), size_of(rows, mixed_width()), split_);
    add(layer.output, layer.post_attention_norm, rows);
    feed_forward(layer, rows);
  }
  normalize(x_.data(), wanted_.data(), norm_.data(), c.rms_epsilon, results, c.embedding, split_);
  (output_.outputs() > 0 ? output_ : embedding_).apply(blas_, split_, results, device_logits_.data());
  if (c.logit_soft_cap > 0)
    soft_cap(device_logits_.data(), size_of(results, c.vocabulary), c.logit_soft_cap);
  check(cudaMemcpyAsync(logits_.data(), device_logits_.data(),
                        size_of(results, c.vocabulary) * sizeof(float), cudaMemcpyDeviceToHost),
        "cudaMemcpyAsync");
  check(cudaStreamSynchronize(nullptr), "forward");
  return logits_;
}

const RowMatrix &CudaEngine::forward(std::span<const int> tokens,
                                     std::span<const SequenceRows> sequences) {
  const Batch batch(tokens, sequences);
  return run_layers(batch, [&](int layer) {
    for (const Batch::OfCache &part : batch.caches) attend(part, layer);
  });
}

const RowMatrix &CudaEngine::prefill(std::span<const int> prompt,
                                     std::span<const SequenceRows> sequences) {
  const auto count = static_cast<squat::Index>(prompt.size());
  return run_layers(Batch(prompt, sequences.first(1)), [&](int layer) {
    for (const SequenceRows &rows : sequences)
      attend({rows.cache, 0, count, {{rows.sequence, count}}}, layer);
  });
}

}  // namespace engine::cuda
