#pragma once

// The engine on a GPU: weights and activations in its memory, products by cuBLAS, attention by
// squat::KVCache.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "batch.hpp"
#include "cuda/device_array.hpp"
#include "cuda/kernels.hpp"
#include "cuda/linear.hpp"
#include "cuda/make_cache.hpp"
#include "engine.hpp"

namespace engine::cuda {

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream &) = delete;
  Stream &operator=(const Stream &) = delete;

  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_{};
};

/// Activations are floats, as in engine::Model; products take them as pairs of float16 (SplitRows).
class CudaEngine : public Engine {
 public:
  /// Throws FileError where the file holds no such model, std::runtime_error where CUDA does not work.
  explicit CudaEngine(const Gguf &file);
  ~CudaEngine() override;

  const Config &config() const override { return config_; }
  std::unique_ptr<Cache> make_cache(const CacheSpec &spec, const squat::Options &options) override {
    return cuda::make_cache(spec, options, stream_);
  }
  const RowMatrix &forward(std::span<const int> tokens,
                           std::span<const SequenceRows> sequences) override;
  const RowMatrix &prefill(std::span<const int> prompt,
                           std::span<const SequenceRows> sequences) override;

 private:
  struct Layer {
    DeviceArray<float> attention_norm, feed_forward_norm;
    Linear qkv, output, gate_up, down;
  };

  Layer read_layer(const Gguf &file, int index) const;
  int qkv_width() const { return (config_.query_heads + 2 * config_.kv_heads) * config_.head_dim; }
  int mixed_width() const { return config_.query_heads * config_.head_dim; }

  void reserve(std::size_t rows, std::size_t wanted);
  void upload(std::span<const Position> rows, std::span<const int> wanted);
  void attend(const Batch::OfCache &part, int layer) const;
  /// attend_rows(layer): attention of all rows. Returns the logits of the last of each sequence.
  template <class Attend>
  const RowMatrix &run_layers(const Batch &batch, Attend &&attend_rows);
  void feed_forward(const Layer &layer, int rows);

  Config config_;
  Stream stream_;
  Blas blas_;
  std::vector<Layer> layers_;
  Linear embedding_, output_;  // output_ is empty where both are one
  DeviceArray<float> norm_, inverse_frequencies_;

  // Of the call in progress, a row a token.
  DeviceArray<int> tokens_, positions_, wanted_;
  DeviceArray<float> x_, qkv_, mixed_, gate_up_, device_logits_;
  SplitRows split_;
  RowMatrix logits_;
};

}  // namespace engine::cuda
