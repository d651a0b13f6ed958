#pragma once

// Attention of a batch: its arguments, and how its work is counted and dealt out.

#include <cstdint>

#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

inline constexpr int block_warps = 4;
inline constexpr int block_threads = block_warps * warp_lanes;
inline constexpr float log2_e = 1.4426950408889634f;

/// Tiles of 16 exact tokens that take about as long as a page does whose heads have so many bytes.
__host__ __device__ constexpr int exact_unit_tiles(int head_bytes, int head_dim) {
  const int tiles = head_bytes / (64 * head_dim);
  return tiles < 2 ? 2 : tiles > 4 ? 4 : tiles;
}

/// Attention of a call: what its kernels take. The call's tokens are in the cache already; query i of an
/// entry's n sees the first length - n + i + 1 tokens of its sequence.
template <class S>
struct AttendCall {
  const BatchEntry *batch;
  std::int32_t entries;
  std::int32_t query_heads;
  std::int32_t kv_heads;
  float scale;                  // of the scores, times log2 e
  const CodingTables *codings;  // indexed by LayerState::coding
  DeviceTensor<const S> q;
  DeviceTensor<S> out;
  float *slots;              // see merge.cuh
  void *sets;                // of queries, see query_sets.cuh
  std::int32_t table_pages;  // entries of the page tables of the batch's sequences together, used or not
  std::int32_t first_tile;   // column tiles [first_tile, first_tile + most_tiles) of every entry
  std::int32_t most_tiles;
  std::int32_t many_tokens;  // entries of so many tokens and more are left to attend_rows.cuh

  /// Query rows that meet a KV head of an entry.
  __host__ __device__ int rows(const BatchEntry &entry) const {
    return entry.tokens * (query_heads / kv_heads);
  }
};

/// Where an entry's units, segments and query sets begin among all.
struct EntryStart {
  std::int32_t unit;
  std::int32_t segment;
  std::int32_t set;
};

/// How the units of one entry are counted.
struct EntryShape {
  std::int32_t tiles;         // column tiles of the call
  std::int32_t exact_blocks;  // of 16 tokens
  std::int32_t exact_units;   // of a segment
  std::int32_t units;         // of a segment

  template <class S>
  __host__ __device__ EntryShape(const AttendCall<S> &call, const BatchEntry &entry,
                                 int exact_unit_tiles) {
    const int rows = entry.tokens < call.many_tokens ? call.rows(entry) : 0;
    const int all = (rows + column_count - 1) / column_count - call.first_tile;
    tiles = all < 0 ? 0 : all < call.most_tiles ? all : call.most_tiles;
    const LayerState &state = *entry.state;
    exact_blocks = (state.sinks + 15) / 16 + (state.tail + 15) / 16;
    exact_units = (exact_blocks + exact_unit_tiles - 1) / exact_unit_tiles;
    units = exact_units + state.page_count;
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

/// Sums up the units and segments of the batch, [entries + 1], by all threads of a block.
template <class S>
__device__ inline void find_starts(const AttendCall<S> &call, int exact_unit_tiles, EntryStart *starts) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int i = thread; i < call.entries; i += threads) {
    const EntryShape shape(call, call.batch[i], exact_unit_tiles);
    const int segments = shape.tiles * call.kv_heads;
    starts[i + 1] = {segments * shape.units, segments, segments * call.batch[i].state->page_count};
  }
  if (thread == 0) starts[0] = {};
  __syncthreads();
  if (thread < warp_lanes) {  // a scan of 32 entries at a time
    EntryStart carry{};
    for (int first = 0; first < call.entries; first += warp_lanes) {
      const int i = first + thread;
      EntryStart own = i < call.entries ? starts[i + 1] : EntryStart{};
      own = {sum_of_lanes_before(own.unit) + carry.unit,
             sum_of_lanes_before(own.segment) + carry.segment, sum_of_lanes_before(own.set) + carry.set};
      if (i < call.entries) starts[i + 1] = own;
      const auto last = [](std::int32_t x) { return __shfl_sync(0xffffffffu, x, warp_lanes - 1); };
      carry = {last(own.unit), last(own.segment), last(own.set)};
    }
  }
  __syncthreads();
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
