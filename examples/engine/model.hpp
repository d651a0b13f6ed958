#pragma once

// The transformer, of every architecture in config.cpp. It knows no cache: attention is handed in.

#include <functional>
#include <span>
#include <vector>

#include "config.hpp"
#include "gguf.hpp"
#include "linear.hpp"

namespace engine {

/// Attention of one layer for the rows of a batch. q, out: [rows, query_heads * head_dim]; k, v: [rows,
/// kv_heads * head_dim]; q and k carry their rotary embedding.
using Attention =
    std::function<void(int layer, RowMatrix &q, RowMatrix &k, RowMatrix &v, RowMatrix &out)>;

class Model {
 public:
  /// Throws FileError where the file holds no such model.
  explicit Model(const Gguf &file);

  const Config &config() const { return config_; }

  /// Logits [rows.size(), vocabulary] of the batch rows named in `wanted`.
  const RowMatrix &forward(std::span<const Position> batch, const Attention &attention,
                           std::span<const int> wanted);

 private:
  /// A product, and what is added to each row of it: nothing where it is empty.
  struct Projection {
    Linear weights;
    Eigen::RowVectorXf bias{};

    void apply(const RowMatrix &x, RowMatrix &y) const;
  };
  /// Norms that an architecture has not got are empty, and change nothing.
  struct Layer {
    Eigen::RowVectorXf attention_norm, feed_forward_norm;
    Eigen::RowVectorXf query_norm, key_norm;  // of each head
    Eigen::RowVectorXf post_attention_norm, post_feed_forward_norm;
    Projection q, k, v;
    Linear output, gate, up, down;
  };
  /// Of the rotary embedding: [rows, pairs of channels].
  struct Angles {
    RowMatrix cosines, sines;
  };

  Layer read_layer(const Gguf &file, int index) const;
  void embed(std::span<const Position> batch);
  void set_angles(std::span<const Position> batch, const std::vector<float> &frequencies,
                  Angles &angles) const;
  void attend(int index, const Attention &attention);
  void feed_forward(const Layer &layer);
  const RowMatrix &logits(std::span<const int> wanted);

  Config config_;
  std::vector<Layer> layers_;
  Linear embedding_, output_;  // output_ is empty where both are one
  Eigen::RowVectorXf norm_;
  // Of the call in progress.
  Angles angles_, local_angles_;
  RowMatrix x_, normal_, q_, k_, v_, mixed_, delta_, gate_, up_, last_, logits_;
};

}  // namespace engine
