#pragma once

// Attention of entries with many query tokens: its arguments, and how its work is counted and dealt out.
//
// The query rows of an entry and KV head, token after token, are cut into row tiles; a tile and a KV
// head are a segment. A segment meets its context in units: steps of 16 to 64 tokens of exact rows, then
// of pages. All units of all segments follow each other and are dealt out in equal runs to the blocks of
// a grid that just fills the device, whose blocks are the workers; partial results are
// merged behind (merge_rows.cuh).
//
// Packed pages are met unpacked (unpack_pages.cuh), in memory that has room for some of them at a time:
// a chunk. Pages of all entries with many tokens are numbered one after another; a chunk is a run of
// these numbers, and the counts below are those of one chunk. Exact rows belong to the first.

#include <cstdint>

#include "squat/cuda/kernels/attend_call.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

inline constexpr int row_warps = 4;
inline constexpr int row_threads = row_warps * warp_lanes;

/// Pages as halves or as T: what row attention reads.
template <int HeadDim, int Group>
using ExactPageLayout = PageLayout<HeadDim, Group, 16, 16>;

/// Tokens of a unit, in tiles of 16: so many that keys and values of two units, beside the queries,
/// leave room for two blocks a processor. A unit lies in one page.
__host__ __device__ constexpr int row_step_tiles(int head_dim, int group) {
  const int most = head_dim <= 128 ? 4 : 2;
  return group / 16 < most ? group / 16 : most;
}

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

template <class S>
struct RowCall {
  AttendCall<S> call;       // its scale times log2 e; tiles are row tiles; slots and sets are not read
  std::uint8_t *unpacked;   // the chunk's pages, [pages, kv_heads] heads of ExactPageLayout
  std::uint8_t *slots;      // RowSlot
  float *sums;              // what chunks before came to: RowSums of segments
  std::int32_t first_page;  // of the chunk, among those of all entries with many tokens
  std::int32_t pages;
  std::int32_t pages_are_exact;  // they are read where they lie, and `unpacked` is not
  std::int32_t last_chunk;
  std::int32_t values_are_rotated;  // of pages: what exact rows come to has slots of its own
};

/// Where an entry's units, segments and pages begin among all.
struct RowStart {
  std::int32_t unit;
  std::int32_t segment;
  std::int32_t page;
};

/// How the units of one entry are counted.
struct RowShape {
  std::int32_t tiles;         // row tiles of the call
  std::int32_t exact_blocks;  // of 16 tokens
  std::int32_t exact_units;   // of a segment
  std::int32_t first_page;    // of the sequence, in the chunk
  std::int32_t units;         // of a segment

  /// start: the entry's first page among all. Rows: of a tile.
  template <class S>
  __device__ RowShape(const RowCall<S> &rows, const BatchEntry &entry, int start, int tile_rows,
                      int step_tiles, int page_steps) {
    const LayerState &state = *entry.state;
    const int count = is_of(rows.call, entry) ? rows.call.rows(entry) : 0;
    const int left = (count + tile_rows - 1) / tile_rows - rows.call.first_tile;
    tiles = left < 0 ? 0 : left < rows.call.most_tiles ? left : rows.call.most_tiles;
    exact_blocks = (state.sinks + 15) / 16 + (state.tail + 15) / 16;
    exact_units = rows.first_page == 0 ? (exact_blocks + step_tiles - 1) / step_tiles : 0;
    first_page = min(max(rows.first_page - start, 0), state.page_count);
    const int end = min(max(rows.first_page + rows.pages - start, 0), state.page_count);
    units = exact_units + (end - first_page) * page_steps;
  }

  /// Whether an entry is one of many tokens.
  template <class S>
  __device__ static bool is_of(const AttendCall<S> &call, const BatchEntry &entry) {
    return entry.tokens >= call.many_tokens;
  }
};

/// starts[i] = the sum of `member` of those before, which stands in starts[1 ... entries]; by the first
/// warp, 32 entries at a time.
__device__ inline void sum_starts(RowStart *starts, int entries, std::int32_t RowStart::*member) {
  const int lane = static_cast<int>(threadIdx.x);
  std::int32_t carry = 0;
  for (int first = 0; first < entries; first += warp_lanes) {
    const int i = first + lane;
    const std::int32_t own = sum_of_lanes_before(i < entries ? starts[i + 1].*member : 0) + carry;
    if (i < entries) starts[i + 1].*member = own;
    carry = __shfl_sync(0xffffffffu, own, warp_lanes - 1);
  }
}

/// Where the pages of each entry begin, [entries + 1], by all threads of a block.
template <class S>
__device__ inline void find_page_starts(const AttendCall<S> &call, RowStart *starts) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (thread == 0) starts[0] = {};
  for (int i = thread; i < call.entries; i += threads) {
    const BatchEntry entry = call.batch[i];
    starts[i + 1] = {0, 0, RowShape::is_of(call, entry) ? entry.state->page_count : 0};
  }
  __syncthreads();
  if (thread < warp_lanes) sum_starts(starts, call.entries, &RowStart::page);
  __syncthreads();
}

/// The same of pages, units and segments.
template <class S>
__device__ inline void find_row_starts(const RowCall<S> &rows, int tile_rows, int step_tiles,
                                       int page_steps, RowStart *starts) {
  const AttendCall<S> &call = rows.call;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  find_page_starts(call, starts);
  for (int i = thread; i < call.entries; i += threads) {
    const RowShape shape(rows, call.batch[i], starts[i].page, tile_rows, step_tiles, page_steps);
    const int segments = shape.tiles * call.kv_heads;
    starts[i + 1].unit = segments * shape.units;
    starts[i + 1].segment = segments;
  }
  __syncthreads();
  if (thread < warp_lanes) {
    sum_starts(starts, call.entries, &RowStart::unit);
    sum_starts(starts, call.entries, &RowStart::segment);
  }
  __syncthreads();
}

/// Workers that have units. Where that leaves out a few only, each segment is cut into the same number
/// of pieces, or each worker has the same number of segments: row tiles of one head then read its keys
/// and values at the same time, and the second-level cache gives them to all but one.
__device__ inline int busy_row_workers(int units, int segments, int workers) {
  const int busy = busy_workers(units, workers);
  if (segments == 0) return busy;
  const int rounds = (segments + workers - 1) / workers;  // segments of a worker, at least
  const int even = segments <= workers ? workers / segments * segments : segments / rounds;
  const bool cuts_evenly = segments <= workers || even * rounds == segments;
  return cuts_evenly && even <= units && 16 * even >= 15 * workers ? even : busy;
}

/// What a block found out about a segment, in a slot: its rows' outputs as halves, [rows, HeadDim], then
/// the logarithms to base 2 of what they were divided by, float [rows].
__host__ __device__ constexpr std::size_t row_slot_bytes(int head_dim, int tile_rows) {
  return static_cast<std::size_t>(tile_rows) * (static_cast<std::size_t>(head_dim) * 2 + 4);
}
/// The same of a segment in all chunks so far: floats.
__host__ __device__ constexpr std::size_t row_sum_floats(int head_dim, int tile_rows) {
  return static_cast<std::size_t>(tile_rows) * (static_cast<std::size_t>(head_dim) + 1);
}

/// The slot of a worker and segment. A worker's units follow each other, and so do workers: of two
/// neighbours one at most shares a segment with the other, so that the sum of both indices names a slot
/// that nobody else has.
template <int HeadDim, class S>
__device__ inline std::uint8_t *row_slot(const RowCall<S> &rows, int tile_rows, int segment, int worker,
                                         bool packed) {
  const std::size_t index = 2 * (static_cast<std::size_t>(segment) + static_cast<std::size_t>(worker));
  return rows.slots + (index + (packed ? 1 : 0)) * row_slot_bytes(HeadDim, tile_rows);
}

}  // namespace squat::cuda
