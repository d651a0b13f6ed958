#pragma once

// The engine on a GPU: weights and activations in its memory, products by cuBLAS, attention by
// squat::KVCache.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cuda/cache.hpp"
#include "cuda/device_array.hpp"
#include "cuda/kernels.hpp"
#include "cuda/linear.hpp"
#include "engine.hpp"

namespace llama::cuda {

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

/// Activations are floats, as in llama::Model; products take them as pairs of float16 (SplitRows).
class CudaEngine : public Engine {
 public:
  /// Throws FileError where the file holds no such model, std::runtime_error where CUDA does not work.
  explicit CudaEngine(const Gguf &file);
  ~CudaEngine() override;

  const Config &config() const override { return config_; }
  int add_sequence(const CacheSpec &spec, const squat::Options &options) override;
  int fork_sequence(int parent) override;
  void reorder(std::span<const int> sequences, std::span<const int> parents) override;
  void remove_sequence(int sequence) override { caches_[static_cast<std::size_t>(sequence)].reset(); }
  squat::MemoryReport memory_report(int sequence) const override {
    return cache(sequence).memory_report();
  }
  const RowMatrix &forward(std::span<const Position> rows, std::span<const int> sequences) override;
  const RowMatrix &prefill(std::span<const Position> prompt, std::span<const int> sequences) override;

 private:
  struct Layer {
    DeviceArray<float> attention_norm, feed_forward_norm;
    Linear qkv, output, gate_up, down;
  };

  Cache &cache(int sequence) const { return *caches_[static_cast<std::size_t>(sequence)]; }
  Layer read_layer(const Gguf &file, int index) const;
  int qkv_width() const { return (config_.query_heads + 2 * config_.kv_heads) * config_.head_dim; }
  int mixed_width() const { return config_.query_heads * config_.head_dim; }

  void reserve(std::size_t rows, std::size_t wanted);
  void upload(std::span<const Position> rows, std::span<const int> wanted);
  /// Rows [first, first + count) of the call's `rows` are the sequence's next tokens.
  void attend(int layer, int rows, int sequence, squat::Index first, squat::Index count);
  /// attend_rows(layer): attention of all rows. Returns the logits of the rows in `wanted`.
  template <class Attend>
  const RowMatrix &run_layers(std::span<const Position> batch, const std::vector<int> &wanted,
                              Attend &&attend_rows);
  void feed_forward(const Layer &layer, int rows);

  Config config_;
  Stream stream_;
  Blas blas_;
  std::vector<Layer> layers_;
  Linear embedding_, output_;  // output_ is empty where both are one
  DeviceArray<float> norm_, inverse_frequencies_;
  std::vector<std::unique_ptr<Cache>> caches_;  // by sequence, none where it was removed

  // Of the call in progress, a row a token.
  DeviceArray<int> tokens_, positions_, wanted_;
  DeviceArray<float> x_, qkv_, mixed_, gate_up_, device_logits_;
  SplitRows split_;
  RowMatrix logits_;
};

}  // namespace llama::cuda
