#pragma once

// Attention of a batch: its arguments, and how its work is counted and dealt out.

#include <cstdint>

#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

inline constexpr float log2_e = 1.4426950408889634f;

/// Attention of a call: what its kernels take. The call's tokens are in the cache already; query i of an
/// entry's n sees the first length - n + i + 1 tokens of its sequence.
template <class S>
struct AttendCall {
  const BatchEntry *batch;
  std::int32_t entries;
  std::int32_t heads_per_kv_head;  // of queries
  std::int32_t kv_heads;
  float scale;                  // of the scores, times log2 e
  const CodingTables *codings;  // indexed by LayerState::coding
  DeviceTensor<const S> q;
  DeviceTensor<S> out;
  float *slots;              // see decode_sums.cuh
  std::int32_t *counters;    // of segments, 0 between launches
  std::int32_t table_pages;  // entries of the page tables of the batch's sequences together, used or not
  std::int32_t first_tile;   // tiles of query rows [first_tile, first_tile + most_tiles) of every entry
  std::int32_t most_tiles;
  std::int32_t many_tokens;  // entries of so many tokens and more are left to attend_rows.cuh

  /// Query rows that meet a KV head of an entry.
  __host__ __device__ int rows(const BatchEntry &entry) const {
    return entry.tokens * heads_per_kv_head;
  }
};

/// Workers that have units: all whose runs are not empty.
__device__ inline int busy_workers(std::int64_t units, int workers) {
  return static_cast<int>(min(units, static_cast<std::int64_t>(workers)));
}

/// The first of the units of worker `worker` among `workers` busy ones.
__device__ inline int run_start(std::int64_t units, int worker, int workers) {
  return static_cast<int>(units * worker / workers);
}

/// The last entry whose `member` is at most `value`, among those that have any.
template <class Start, class Member>
__device__ inline int find_entry(const Start *starts, int entries, int value, Member member) {
  int low = 0, high = entries;  // starts[low] <= value < starts[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (starts[middle].*member <= value ? low : high) = middle;
  }
  return low;
}

}  // namespace squat::cuda
