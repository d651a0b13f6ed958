#include "model.hpp"

#include <cmath>
#include <string>

#include "dequantize.hpp"

namespace llama {
namespace {

// Rows above which a pass over one matrix pays for waking the threads.
[[maybe_unused]] constexpr Eigen::Index many_rows = 8;

Eigen::RowVectorXf read_vector(const Gguf &file, const std::string &name, int size) {
  const auto elements = dequantize(file.tensor(name, {static_cast<std::uint64_t>(size)}));
  return Eigen::Map<const Eigen::RowVectorXf>(elements.data(), size);
}

Linear read_linear(const Gguf &file, const std::string &name, int outputs, int inputs) {
  return {file.tensor(name, {static_cast<std::uint64_t>(inputs), static_cast<std::uint64_t>(outputs)}),
          outputs, inputs};
}

}  // namespace

Model::Model(const Gguf &file) : config_(read_config(file)) {
  const Config &c = config_;
  embedding_ = read_linear(file, "token_embd.weight", c.vocabulary, c.embedding);
  if (file.has_tensor("output.weight"))
    output_ = read_linear(file, "output.weight", c.vocabulary, c.embedding);
  norm_ = read_vector(file, "output_norm.weight", c.embedding);
  for (int i = 0; i < c.layers; ++i) {
    const std::string prefix = "blk." + std::to_string(i) + ".";
    const auto linear = [&](const char *name, int outputs, int inputs) {
      return read_linear(file, prefix + name + ".weight", outputs, inputs);
    };
    const int heads = c.query_heads * c.head_dim, kv_heads = c.kv_heads * c.head_dim;
    layers_.push_back(
        {read_vector(file, prefix + "attn_norm.weight", c.embedding),
         read_vector(file, prefix + "ffn_norm.weight", c.embedding),
         linear("attn_q", heads, c.embedding), linear("attn_k", kv_heads, c.embedding),
         linear("attn_v", kv_heads, c.embedding), linear("attn_output", c.embedding, heads),
         linear("ffn_gate", c.feed_forward, c.embedding), linear("ffn_up", c.feed_forward, c.embedding),
         linear("ffn_down", c.embedding, c.feed_forward)});
  }
}

/// Row by row, so that no row depends, by its rounding, on how many others there are.
void Model::normalize(const RowMatrix &x, const Eigen::RowVectorXf &weight, RowMatrix &y) const {
  y.resize(x.rows(), x.cols());
  for (Eigen::Index row = 0; row < x.rows(); ++row) {
    const float mean = x.row(row).squaredNorm() / static_cast<float>(x.cols());
    y.row(row) = x.row(row).cwiseProduct(weight) / std::sqrt(mean + config_.rms_epsilon);
  }
}

void Model::set_angles(std::span<const Position> batch) {
  const auto &frequencies = config_.inverse_frequencies;
  const auto rows = static_cast<Eigen::Index>(batch.size());
  cosines_.resize(rows, static_cast<Eigen::Index>(frequencies.size()));
  sines_.resize(rows, cosines_.cols());
  for (Eigen::Index row = 0; row < rows; ++row) {
    const double position = batch[static_cast<std::size_t>(row)].position;
    for (Eigen::Index pair = 0; pair < cosines_.cols(); ++pair) {
      const double angle = position * static_cast<double>(frequencies[static_cast<std::size_t>(pair)]);
      cosines_(row, pair) = static_cast<float>(std::cos(angle));
      sines_(row, pair) = static_cast<float>(std::sin(angle));
    }
  }
}

/// Turns the pair (2i, 2i + 1) of every head by position * frequency_i, the pairing of GGUF's Llama
/// files.
void Model::rotate(RowMatrix &x, int heads) const {
#pragma omp parallel for schedule(static) if (x.rows() > many_rows)
  for (Eigen::Index row = 0; row < x.rows(); ++row) {
    for (int head = 0; head < heads; ++head) {
      float *two = &x(row, head * config_.head_dim);
      for (Eigen::Index pair = 0; pair < cosines_.cols(); ++pair, two += 2) {
        const float a = two[0], b = two[1], c = cosines_(row, pair), s = sines_(row, pair);
        two[0] = a * c - b * s;
        two[1] = a * s + b * c;
      }
    }
  }
}

/// gate = silu(gate) * up, silu(x) = x / (1 + exp(-x)).
void Model::activate(RowMatrix &gate, const RowMatrix &up) {
#pragma omp parallel for schedule(static) if (gate.rows() > many_rows)
  for (Eigen::Index row = 0; row < gate.rows(); ++row) {
    auto x = gate.row(row).array();
    x = x / (1.0f + (-x).exp()) * up.row(row).array();
  }
}

const RowMatrix &Model::forward(std::span<const Position> batch, const Attention &attention,
                                std::span<const int> wanted) {
  check_tokens(config_, batch);
  const auto rows = static_cast<Eigen::Index>(batch.size());
  x_.resize(rows, config_.embedding);
  for (Eigen::Index row = 0; row < rows; ++row) {
    embedding_.copy_row(batch[static_cast<std::size_t>(row)].token, x_.row(row).data());
  }
  set_angles(batch);
  for (int i = 0; i < config_.layers; ++i) {
    const Layer &layer = layers_[static_cast<std::size_t>(i)];
    normalize(x_, layer.attention_norm, normal_);
    layer.q.apply(normal_, q_);
    layer.k.apply(normal_, k_);
    layer.v.apply(normal_, v_);
    rotate(q_, config_.query_heads);
    rotate(k_, config_.kv_heads);
    mixed_.resize(rows, q_.cols());
    attention(i, q_, k_, v_, mixed_);
    layer.output.apply(mixed_, delta_);
    x_ += delta_;
    normalize(x_, layer.feed_forward_norm, normal_);
    layer.gate.apply(normal_, gate_);
    layer.up.apply(normal_, up_);
    activate(gate_, up_);
    layer.down.apply(gate_, delta_);
    x_ += delta_;
  }
  last_.resize(static_cast<Eigen::Index>(wanted.size()), config_.embedding);
  for (std::size_t i = 0; i < wanted.size(); ++i)
    last_.row(static_cast<Eigen::Index>(i)) = x_.row(wanted[i]);
  normalize(last_, norm_, normal_);
  (output_.outputs() > 0 ? output_ : embedding_).apply(normal_, logits_);
  return logits_;
}

}  // namespace llama
