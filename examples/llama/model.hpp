#pragma once

// The transformer of the Llama architecture. It knows no cache: attention is handed in.

#include <functional>
#include <span>
#include <vector>

#include "config.hpp"
#include "gguf.hpp"
#include "linear.hpp"

namespace llama {

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
  struct Layer {
    Eigen::RowVectorXf attention_norm, feed_forward_norm;
    Linear q, k, v, output, gate, up, down;
  };

  void normalize(const RowMatrix &x, const Eigen::RowVectorXf &weight, RowMatrix &y) const;
  void set_angles(std::span<const Position> batch);
  void rotate(RowMatrix &x, int heads) const;
  static void activate(RowMatrix &gate, const RowMatrix &up);

  Config config_;
  std::vector<Layer> layers_;
  Linear embedding_, output_;  // output_ is empty where both are one
  Eigen::RowVectorXf norm_;
  // Of the call in progress. Angles of the rotary embedding: [rows, pairs of channels].
  RowMatrix cosines_, sines_;
  RowMatrix x_, normal_, q_, k_, v_, mixed_, delta_, gate_, up_, last_, logits_;
};

}  // namespace llama
