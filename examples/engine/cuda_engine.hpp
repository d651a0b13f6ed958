#pragma once

// The engine on a GPU: weights and activations in its memory, products by cuBLAS, attention by
// squat::ModelCache. All of it is put into the default stream, as are calls of a cache that name none.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "batch.hpp"
#include "cuda/device_array.hpp"
#include "cuda/kernels.hpp"
#include "cuda/linear.hpp"
#include "engine.hpp"

namespace engine::cuda {

/// Activations are floats, as in engine::Model; products take them as pairs of float16 (SplitRows).
class CudaEngine : public Engine {
 public:
  /// Throws FileError where the file holds no such model, std::runtime_error where CUDA does not work.
  explicit CudaEngine(const Gguf &file);

  const Config &config() const override { return config_; }
  std::unique_ptr<ModelCache> make_cache(const squat::ModelOptions &options) override;
  const RowMatrix &forward(std::span<const int> tokens,
                           std::span<const SequenceRows> sequences) override;
  const RowMatrix &prefill(std::span<const int> prompt,
                           std::span<const SequenceRows> sequences) override;

 private:
  /// As in engine::Model: what an architecture has not got is empty.
  struct Layer {
    DeviceArray<float> attention_norm, feed_forward_norm;
    DeviceArray<float> qkv_bias, query_norm, key_norm;
    DeviceArray<float> post_attention_norm, post_feed_forward_norm;
    Linear qkv, output, gate_up, down;
  };

  Layer read_layer(const Gguf &file, int index) const;
  int qkv_width() const { return (config_.query_heads + 2 * config_.kv_heads) * config_.head_dim; }
  int mixed_width() const { return config_.query_heads * config_.head_dim; }

  void reserve(std::size_t rows, std::size_t wanted);
  void upload(std::span<const Position> rows, std::span<const int> wanted);
  Heads heads_of(int layer) const;
  void attend(const Batch::OfCache &part, int layer) const;
  /// x += norm(split W^T).
  void add(const Linear &weights, const DeviceArray<float> &post_norm, int rows);
  /// attend_rows(layer): attention of all rows. Returns the logits of the last of each sequence.
  template <class Attend>
  const RowMatrix &run_layers(const Batch &batch, Attend &&attend_rows);
  void feed_forward(const Layer &layer, int rows);

  Config config_;
  Blas blas_;
  std::vector<Layer> layers_;
  Linear embedding_, output_;  // output_ is empty where both are one
  DeviceArray<float> norm_, inverse_frequencies_, local_inverse_frequencies_;

  // Of the call in progress, a row a token.
  DeviceArray<int> tokens_, positions_, wanted_;
  DeviceArray<float> x_, qkv_, mixed_, delta_, gate_up_, device_logits_;
  SplitRows split_;
  RowMatrix logits_;
};

}  // namespace engine::cuda
