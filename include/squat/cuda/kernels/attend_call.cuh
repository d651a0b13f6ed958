#pragma once

// Attention of a batch: its arguments.

#include <cstdint>

#include "squat/cuda/kernels/score_rule.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// A row of a draft, as kernels know it; SequenceCall says more.
struct DraftRow {
  std::int32_t parent = -1;  ///< row of the call's tensors; -1: none
  std::int32_t depth = 0;    ///< tokens of its path; 0: the row is of no sequence
  std::int32_t cached = 0;   ///< tokens are cached of its sequence
};

/// Attention of a call: what its kernels take. The call's tokens are in the cache already; query i of an
/// entry's n sees the first length - n + i + 1 tokens of its sequence, unless the entry is not causal.
/// Those of a draft are not there: its queries see all that is, from where their tokens would stand; its
/// entries are not causal.
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
  DeviceTensor<float> lse;  // of data null: not asked for
  float *slots;             // see decode_sums.cuh
  std::int32_t *counters;   // of segments, 0 between launches
  std::int32_t most_pages;  // that the batch's sequences may have together
  std::int32_t first_tile;  // tiles of query rows [first_tile, first_tile + most_tiles) of every entry
  std::int32_t most_tiles;
  std::int32_t many_tokens;     // entries of so many tokens and more are left to attend_rows.cuh
  const DraftRow *draft;        // of the rows of the call's tensors; null: the call is no draft
  std::int32_t turns_in_place;  // all channels turn, or those of a pair are neighbours, see UnpackedKeys

  /// Positions below are seen by a query row of an entry, as far as they are there, and its own token
  /// stands right before. Ruled: that matters, else what is seen alone does.
  template <bool Ruled = true>
  __device__ int seen(const BatchEntry &entry, int length, int row) const {
    const int token = row / heads_per_kv_head;
    if (Ruled && draft != nullptr) return length + draft[entry.first_row + token].depth;
    return entry.causal != 0 ? length - entry.tokens + token + 1 : length;
  }
  /// At most what the rows from `row` on see, and at least what those up to it do: in a draft, what any
  /// may.
  template <bool Ruled>
  __device__ int least_seen(const BatchEntry &entry, int length, int row) const {
    return Ruled && draft != nullptr ? length + 1 : seen<Ruled>(entry, length, row);
  }
  template <bool Ruled>
  __device__ int most_seen(const BatchEntry &entry, int length, int row) const {
    return Ruled && draft != nullptr ? length + entry.tokens : seen<Ruled>(entry, length, row);
  }

  /// Query rows that meet a KV head of an entry.
  __host__ __device__ int rows(const BatchEntry &entry) const {
    return entry.tokens * heads_per_kv_head;
  }
};

}  // namespace squat::cuda
