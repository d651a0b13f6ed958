#pragma once

// Attention of a batch: its arguments.

#include <cstdint>

#include "squat/cuda/kernels/score_rule.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Attention of a call: what its kernels take. The call's tokens are in the cache already; query i of an
/// entry's n sees the first length - n + i + 1 tokens of its sequence, unless the entry is not causal.
template <class S>
struct AttendCall {
  const BatchEntry *batch;
  std::int32_t entries;
  std::int32_t heads_per_kv_head;  // of queries
  std::int32_t kv_heads;
  float scale;  // of the scores, times log2 e
  ScoreRule rule;
  const CodingTables *codings;  // indexed by LayerState::coding
  DeviceTensor<const S> q;
  DeviceTensor<S> out;
  DeviceTensor<float> lse;   // of data null: not asked for
  float *slots;              // see decode_sums.cuh
  std::int32_t *counters;    // of segments, 0 between launches
  std::int32_t table_pages;  // entries of the page tables of the batch's sequences together, used or not
  std::int32_t first_tile;   // tiles of query rows [first_tile, first_tile + most_tiles) of every entry
  std::int32_t most_tiles;
  std::int32_t many_tokens;  // entries of so many tokens and more are left to attend_rows.cuh

  /// How many tokens of its sequence a query row of an entry sees at most.
  __device__ int seen(const BatchEntry &entry, int length, int row) const {
    return entry.causal != 0 ? length - entry.tokens + row / heads_per_kv_head + 1 : length;
  }

  /// Query rows that meet a KV head of an entry.
  __host__ __device__ int rows(const BatchEntry &entry) const {
    return entry.tokens * heads_per_kv_head;
  }
};

}  // namespace squat::cuda
