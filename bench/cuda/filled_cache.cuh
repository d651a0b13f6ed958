#pragma once

// A cache that holds sequences of one length, learnt from their first tokens.

#include <algorithm>
#include <vector>

#include "squat/squat.cuh"
#include "tokens.cuh"
#include "workload.hpp"

namespace bench {

/// Tokens of a page: as KIVI has them, or the default.
inline int group_of(MaybeCoding coding, int bits) {
  return coding == squat::Coding::plain && bits < 16 ? 32 : 128;
}

inline squat::Options options_of(const Shape &shape, MaybeCoding coding, int bits, int layers = 1) {
  return {.layers = layers,
          .query_heads = shape.query_heads,
          .kv_heads = shape.kv_heads,
          .head_dim = shape.head_dim,
          .coding = coding,
          .page_tokens = group_of(coding, bits),
          .rotary = {rotary_table()}};
}

/// The groups of group_of(): what is left out need not be compiled.
using BenchBackend = squat::CudaOf<squat::cuda::OneOf<head_dim>, squat::cuda::OneOf<32, 128>>;

template <int Bits, class Backend = BenchBackend>
class FilledCache {
 public:
  using Cache = squat::KVCache<squat::half, Bits, Bits, Backend>;

  FilledCache(const squat::Options &options, cudaStream_t stream) : cache_(options), stream_(stream) {}

  FilledCache(const Workload &workload, MaybeCoding coding, cudaStream_t stream)
      : FilledCache(options_of(workload.shape, coding, Bits), stream) {
    add(workload.shape, workload.sequences, workload.tokens);
  }

  /// Adds sequences of `tokens` tokens in every layer.
  void add(const Shape &shape, int sequences, squat::Index tokens) {
    const std::size_t first_new = batch_.size();
    for (int i = 0; i < sequences; ++i) batch_.push_back({cache_.add_sequence(), 1});
    const squat::Index run = std::min<squat::Index>(tokens, 4096);
    Tokens in(shape, run, 0, stream_);
    for (squat::Index first = 0; first < tokens; first += run) {
      const squat::Index count = std::min(run, tokens - first);
      if (first > 0) in.make(first, stream_);
      for (std::size_t i = first_new; i < batch_.size(); ++i) {
        for (int layer = 0; layer < cache_.options().layers; ++layer) {
          cache_.append(batch_[i].sequence, layer, in.q().slice(0, count), in.k().slice(0, count),
                        in.v().slice(0, count), stream_);
        }
      }
    }
    squat::cuda::check(cudaStreamSynchronize(stream_), "filling a cache");
  }

  void remove_last() {
    cache_.remove_sequence(batch_.back().sequence);
    batch_.pop_back();
  }

  Cache &cache() { return cache_; }

  /// One token of every sequence.
  const std::vector<squat::SequenceTokens> &batch() const { return batch_; }

  /// What a decode step reads: pages, with codes, zeros and scales, and exact rows.
  double bytes_read() const {
    const squat::MemoryReport report = cache_.memory_report();
    const double row = 2.0 * cache_.options().kv_heads * cache_.options().head_dim;
    return static_cast<double>(report.pages_used) +
           static_cast<double>(report.exact_tokens) * row * sizeof(squat::half);
  }

 private:
  Cache cache_;
  cudaStream_t stream_;
  std::vector<squat::SequenceTokens> batch_;
};

}  // namespace bench
