#include "model.hpp"

#include <cmath>
#include <numbers>
#include <string>

#include "dequantize.hpp"

namespace engine {
namespace {

using Vector = Eigen::RowVectorXf;

// Rows above which a pass over one matrix pays for waking the threads.
[[maybe_unused]] constexpr Eigen::Index many_rows = 8;

Vector read_vector(const Gguf &file, const std::string &name, int size) {
  const auto elements = dequantize(file.tensor(name, {static_cast<std::uint64_t>(size)}));
  return Eigen::Map<const Vector>(elements.data(), size);
}

Linear read_linear(const Gguf &file, const std::string &name, int outputs, int inputs) {
  return {file.tensor(name, {static_cast<std::uint64_t>(inputs), static_cast<std::uint64_t>(outputs)}),
          outputs, inputs};
}

/// y = x weight / sqrt(mean of x^2 + epsilon), row by row, so that no row depends, by its rounding, on
/// how many others there are. x and y may be one.
void normalize(Eigen::Ref<const RowMatrix> x, const Vector &weight, float epsilon,
               Eigen::Ref<RowMatrix> y) {
  for (Eigen::Index row = 0; row < x.rows(); ++row) {
    const float mean = x.row(row).squaredNorm() / static_cast<float>(x.cols());
    y.row(row) = x.row(row).cwiseProduct(weight) / std::sqrt(mean + epsilon);
  }
}

/// Every head of every row; none where the weight is empty.
void normalize_heads(RowMatrix &x, const Vector &weight, float epsilon) {
  if (weight.size() == 0) return;
  Eigen::Map<RowMatrix> heads(x.data(), x.size() / weight.size(), weight.size());
  normalize(heads, weight, epsilon, heads);
}

/// Turns the pairs of every head by position * frequency.
void rotate(RowMatrix &x, int head_dim, squat::RotaryPairs pairing, const RowMatrix &cosines,
            const RowMatrix &sines) {
  const Eigen::Index pairs = cosines.cols();
  const bool halves = pairing == squat::RotaryPairs::halves;
  const Eigen::Index step = halves ? 1 : 2, apart = halves ? pairs : 1;
#pragma omp parallel for schedule(static) if (x.rows() > many_rows)
  for (Eigen::Index row = 0; row < x.rows(); ++row) {
    for (Eigen::Index head = 0; head < x.cols(); head += head_dim) {
      float *first = &x(row, head);
      for (Eigen::Index pair = 0; pair < pairs; ++pair, first += step) {
        const float a = first[0], b = first[apart], c = cosines(row, pair), s = sines(row, pair);
        first[0] = a * c - b * s;
        first[apart] = a * s + b * c;
      }
    }
  }
}

/// gate = activation(gate) * up.
void activate(Activation activation, RowMatrix &gate, const RowMatrix &up) {
  static const float slope = std::sqrt(2 / std::numbers::pi_v<float>);
#pragma omp parallel for schedule(static) if (gate.rows() > many_rows)
  for (Eigen::Index row = 0; row < gate.rows(); ++row) {
    auto x = gate.row(row).array();
    if (activation == Activation::silu) {
      x = x / (1.0f + (-x).exp()) * up.row(row).array();
    } else {
      x = 0.5f * x * (1.0f + (slope * (x + 0.044715f * x.cube())).tanh()) * up.row(row).array();
    }
  }
}

}  // namespace

Model::Model(const Gguf &file) : config_(read_config(file)) {
  const Config &c = config_;
  embedding_ = read_linear(file, "token_embd.weight", c.vocabulary, c.embedding);
  if (file.has_tensor("output.weight"))
    output_ = read_linear(file, "output.weight", c.vocabulary, c.embedding);
  norm_ = read_vector(file, "output_norm.weight", c.embedding);
  for (int i = 0; i < c.layers; ++i) layers_.push_back(read_layer(file, i));
}

Model::Layer Model::read_layer(const Gguf &file, int index) const {
  const Config &c = config_;
  const Differences &d = c.differences;
  const std::string prefix = "blk." + std::to_string(index) + ".";
  const auto linear = [&](const char *name, int outputs, int inputs) {
    return read_linear(file, prefix + name + ".weight", outputs, inputs);
  };
  const auto norm = [&](bool there, const char *name, int size) {
    return there ? read_vector(file, prefix + name + ".weight", size) : Vector();
  };
  const auto projection = [&](const char *name, int heads) {
    const int outputs = heads * c.head_dim;
    return Projection{linear(name, outputs, c.embedding),
                      d.biases ? read_vector(file, prefix + name + ".bias", outputs) : Vector()};
  };
  return {.attention_norm = norm(true, "attn_norm", c.embedding),
          .feed_forward_norm = norm(true, "ffn_norm", c.embedding),
          .query_norm = norm(d.head_norms, "attn_q_norm", c.head_dim),
          .key_norm = norm(d.head_norms, "attn_k_norm", c.head_dim),
          .post_attention_norm = norm(d.post_norms, "post_attention_norm", c.embedding),
          .post_feed_forward_norm = norm(d.post_norms, "post_ffw_norm", c.embedding),
          .q = projection("attn_q", c.query_heads),
          .k = projection("attn_k", c.kv_heads),
          .v = projection("attn_v", c.kv_heads),
          .output = linear("attn_output", c.embedding, c.query_heads * c.head_dim),
          .gate = linear("ffn_gate", c.feed_forward, c.embedding),
          .up = linear("ffn_up", c.feed_forward, c.embedding),
          .down = linear("ffn_down", c.embedding, c.feed_forward)};
}

void Model::Projection::apply(const RowMatrix &x, RowMatrix &y) const {
  weights.apply(x, y);
  if (bias.size() > 0) y.rowwise() += bias;
}

void Model::embed(std::span<const Position> batch) {
  x_.resize(static_cast<Eigen::Index>(batch.size()), config_.embedding);
  for (Eigen::Index row = 0; row < x_.rows(); ++row)
    embedding_.copy_row(batch[static_cast<std::size_t>(row)].token, x_.row(row).data());
  if (config_.differences.scaled_embedding) x_ *= std::sqrt(static_cast<float>(config_.embedding));
}

void Model::set_angles(std::span<const Position> batch, const std::vector<float> &frequencies,
                       Angles &angles) const {
  const auto rows = static_cast<Eigen::Index>(batch.size());
  angles.cosines.resize(rows, static_cast<Eigen::Index>(frequencies.size()));
  angles.sines.resize(rows, angles.cosines.cols());
  for (Eigen::Index row = 0; row < rows; ++row) {
    const double position = batch[static_cast<std::size_t>(row)].position;
    for (Eigen::Index pair = 0; pair < angles.cosines.cols(); ++pair) {
      const double angle = position * static_cast<double>(frequencies[static_cast<std::size_t>(pair)]);
      angles.cosines(row, pair) = static_cast<float>(std::cos(angle));
      angles.sines(row, pair) = static_cast<float>(std::sin(angle));
    }
  }
}

/// x += norm(output(attention(norm(x)))).
void Model::attend(int index, const Attention &attention) {
  const Config &c = config_;
  const Layer &layer = layers_[static_cast<std::size_t>(index)];
  const Angles &angles = c.is_local(index) ? local_angles_ : angles_;
  normal_.resize(x_.rows(), x_.cols());
  normalize(x_, layer.attention_norm, c.rms_epsilon, normal_);
  layer.q.apply(normal_, q_);
  layer.k.apply(normal_, k_);
  layer.v.apply(normal_, v_);
  normalize_heads(q_, layer.query_norm, c.rms_epsilon);
  normalize_heads(k_, layer.key_norm, c.rms_epsilon);
  for (RowMatrix *turned : {&q_, &k_})
    rotate(*turned, c.head_dim, c.differences.rotary_pairs, angles.cosines, angles.sines);
  mixed_.resize(x_.rows(), q_.cols());
  attention(index, q_, k_, v_, mixed_);
  layer.output.apply(mixed_, delta_);
  if (c.differences.post_norms) normalize(delta_, layer.post_attention_norm, c.rms_epsilon, delta_);
  x_ += delta_;
}

/// x += norm(down(activation(gate(norm(x))) * up(norm(x)))).
void Model::feed_forward(const Layer &layer) {
  const Config &c = config_;
  normalize(x_, layer.feed_forward_norm, c.rms_epsilon, normal_);
  layer.gate.apply(normal_, gate_);
  layer.up.apply(normal_, up_);
  activate(c.differences.activation, gate_, up_);
  layer.down.apply(gate_, delta_);
  if (c.differences.post_norms) normalize(delta_, layer.post_feed_forward_norm, c.rms_epsilon, delta_);
  x_ += delta_;
}

const RowMatrix &Model::logits(std::span<const int> wanted) {
  last_.resize(static_cast<Eigen::Index>(wanted.size()), config_.embedding);
  for (std::size_t i = 0; i < wanted.size(); ++i)
    last_.row(static_cast<Eigen::Index>(i)) = x_.row(wanted[i]);
  normalize(last_, norm_, config_.rms_epsilon, last_);
  (output_.outputs() > 0 ? output_ : embedding_).apply(last_, logits_);
  if (const float cap = config_.logit_soft_cap; cap > 0) logits_ = cap * (logits_.array() / cap).tanh();
  return logits_;
}

const RowMatrix &Model::forward(std::span<const Position> batch, const Attention &attention,
                                std::span<const int> wanted) {
  check_tokens(config_, batch);
  embed(batch);
  set_angles(batch, config_.inverse_frequencies, angles_);
  if (config_.attention_window > 0) set_angles(batch, config_.local_inverse_frequencies, local_angles_);
  for (int i = 0; i < config_.layers; ++i) {
    attend(i, attention);
    feed_forward(layers_[static_cast<std::size_t>(i)]);
  }
  return logits(wanted);
}

}  // namespace engine
