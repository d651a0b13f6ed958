// The cache of one pair of widths: an object a pair, so that they compile side by side, for they take a
// while.

#include "cuda/cache.hpp"
#include "shared_sequence.hpp"
#include "squat/squat.cuh"

namespace llama::cuda {
namespace {

using Backend = squat::CudaFor<LLAMA_HEAD_DIM>;

class CacheOfWidths : public Cache {
 public:
  using KVCache = squat::KVCache<squat::half, LLAMA_KEY_BITS, LLAMA_VALUE_BITS, Backend>;

  explicit CacheOfWidths(const squat::Options &options) : sequence_(options) {}
  CacheOfWidths(const SharedSequence<KVCache> *parent, cudaStream_t stream)
      : sequence_(parent, stream) {}

  void attend(int layer, squat::TensorView<float> q, squat::TensorView<float> k,
              squat::TensorView<float> v, squat::TensorView<float> out, cudaStream_t stream) override {
    sequence_.cache().attend(sequence_.id(), layer, q, k, v, out, stream);
  }
  std::unique_ptr<Cache> fork(cudaStream_t stream) const override {
    return std::make_unique<CacheOfWidths>(&sequence_, stream);
  }
  const void *shared() const override { return &sequence_.cache(); }
  squat::SequenceId id() const override { return sequence_.id(); }
  void reorder(std::span<Cache *const> sequences, std::span<Cache *const> parents,
               cudaStream_t stream) const override {
    sequence_.cache().reorder(ids_of(sequences, shared()), ids_of(parents, shared()), stream);
  }
  squat::MemoryReport memory_report() const override { return sequence_.cache().memory_report(); }
  const squat::Options &options() const override { return sequence_.cache().options(); }

 private:
  SharedSequence<KVCache> sequence_;
};

}  // namespace

template <>
std::unique_ptr<Cache> make_cache_of<LLAMA_KEY_BITS, LLAMA_VALUE_BITS>(const squat::Options &options) {
  return std::make_unique<CacheOfWidths>(options);
}

}  // namespace llama::cuda
