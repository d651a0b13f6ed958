// The cache of one pair of widths: an object a pair, so that they compile side by side, for they take a
// while.

#include "cuda/cache.hpp"
#include "squat/squat.cuh"

namespace llama::cuda {
namespace {

using Backend = squat::CudaFor<LLAMA_HEAD_DIM>;

class CacheOfWidths : public Cache {
 public:
  explicit CacheOfWidths(const squat::Options &options)
      : cache_(options), sequence_(cache_.add_sequence()) {}

  void attend(int layer, squat::TensorView<float> q, squat::TensorView<float> k,
              squat::TensorView<float> v, squat::TensorView<float> out, cudaStream_t stream) override {
    cache_.attend(sequence_, layer, q, k, v, out, stream);
  }
  squat::MemoryReport memory_report() const override { return cache_.memory_report(); }
  const squat::Options &options() const override { return cache_.options(); }

 private:
  squat::KVCache<squat::half, LLAMA_KEY_BITS, LLAMA_VALUE_BITS, Backend> cache_;
  squat::SequenceId sequence_;
};

}  // namespace

template <>
std::unique_ptr<Cache> make_cache_of<LLAMA_KEY_BITS, LLAMA_VALUE_BITS>(const squat::Options &options) {
  return std::make_unique<CacheOfWidths>(options);
}

}  // namespace llama::cuda
