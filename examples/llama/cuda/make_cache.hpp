#pragma once

// A cache on the GPU of the type a SPEC names.

#include <cuda_runtime_api.h>

#include <memory>
#include <span>

#include "cache_spec.hpp"
#include "squat/squat.hpp"

namespace llama::cuda {

/// One sequence in a squat::KVCache of some widths, which its forks share. Exact rows are float16, as
/// engines keep them.
class Cache {
 public:
  virtual ~Cache() = default;

  /// Appends and attends: the tokens of the views, in device memory, are the sequence's next ones.
  virtual void attend(int layer, squat::TensorView<float> q, squat::TensorView<float> k,
                      squat::TensorView<float> v, squat::TensorView<float> out, cudaStream_t stream) = 0;
  /// A sequence of the same cache that begins as this is now.
  virtual std::unique_ptr<Cache> fork(cudaStream_t stream) const = 0;
  /// The cache that forks share, and the sequence's handle in it.
  virtual const void *shared() const = 0;
  virtual squat::SequenceId id() const = 0;
  /// sequences[i] becomes what parents[i] was, all of them forks of this. Throws std::invalid_argument
  /// for others.
  virtual void reorder(std::span<Cache *const> sequences, std::span<Cache *const> parents,
                       cudaStream_t stream) const = 0;
  virtual squat::MemoryReport memory_report() const = 0;
  virtual const squat::Options &options() const = 0;
};

/// Throws std::invalid_argument where the widths were not compiled in.
std::unique_ptr<Cache> make_cache(const CacheSpec &spec, const squat::Options &options);

/// Defined in cache_of_widths.cu, for the pairs in LLAMA_WIDTHS.
template <int KeyBits, int ValueBits>
std::unique_ptr<Cache> make_cache_of(const squat::Options &options);

}  // namespace llama::cuda
