#pragma once

// Attention of a batch of queries over sinks, pages and tails.
//
// Eight query rows of a token and KV head (more heads a KV head or more tokens: several such column tiles)
// meet the context of their sequence and layer, a segment: first its exact rows in units of 128 tokens, then
// its pages, one a unit. All units of all segments follow each other and are dealt out in equal runs to the
// blocks of a grid that just fills the device, and within a block in equal runs to its warps, which keep a
// running softmax in registers and merge at the segment's end in shared memory. What a block finds out about
// a segment goes to a slot of the workspace; the last block of a segment adds its slots up (merge.cuh).
//
// Counts are read on the device: the launch depends on the batch's size alone.
//
// A warp's page is copied to shared memory asynchronously, its keys while the page before it goes through
// softmax and values, its values meanwhile the keys are scored: one page of buffer a warp.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/cuda/device_state.cuh"
#include "squat/cuda/attend_call.cuh"
#include "squat/cuda/exact_tiles.cuh"
#include "squat/cuda/merge.cuh"
#include "squat/cuda/page_layout.cuh"
#include "squat/cuda/score_keys.cuh"
#include "squat/cuda/sum_values.cuh"
#include "squat/cuda/transform_queries.cuh"
#include "squat/cuda/warp.cuh"

namespace squat::cuda {

/// The running softmax of a lane's columns: of the scores times their factors, in powers of two. Sums are
/// those of the lane's rows.
struct ColumnState {
  float maximum[2];
  float sum[2];

  __device__ void clear() {
    maximum[0] = maximum[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }
};

/// c becomes probabilities relative to the running maximum; sums are rescaled where it rises.
template <int Tiles, class Sums>
__device__ inline void exponentiate(float (&c)[Tiles][4], float2 factors, ColumnState &state, Sums &sums) {
  const float factor[2] = {factors.x, factors.y};
  float rescale[2], maximum[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float largest = -INFINITY;
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) largest = fmaxf(largest, fmaxf(c[tile][i], c[tile][i + 2]));
    largest = fmaxf(state.maximum[i], largest_row(largest) * factor[i]);
    rescale[i] = largest == state.maximum[i] ? 1.0f : power_of_two(state.maximum[i] - largest);
    state.maximum[i] = largest;
    maximum[i] = largest == -INFINITY ? 0.0f : largest;
  }
  if (__any_sync(0xffffffffu, rescale[0] != 1.0f || rescale[1] != 1.0f)) {
    sums.multiply(rescale[0], rescale[1]);
    state.sum[0] *= rescale[0];
    state.sum[1] *= rescale[1];
  }
#pragma unroll
  for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      c[tile][j] = power_of_two(c[tile][j] * factor[j % 2] - maximum[j % 2]);
      state.sum[j % 2] += c[tile][j];
    }
  }
}

/// One warp's work on segments.
template <class Layout, ValueCoding Values, class T, class S>
class SegmentWarp {
 public:
  static constexpr int HeadDim = Layout::HeadDim;
  static constexpr int steps = HeadDim / 16;
  using Block = BlockLayout<HeadDim>;
  using Sums = OutputSums<HeadDim, Values>;
  static constexpr bool stages_keys = Layout::KeyBits < 16, stages_values = Layout::ValueBits < 16;
  static constexpr int key_bytes = Layout::value_codes;
  static constexpr int value_bytes = Layout::head_bytes(Values) - Layout::value_codes;

  /// Shared memory of a warp: a page's head, and the output while warps merge.
  __host__ __device__ static constexpr int stage_bytes() {
    const int output = SlotLayout<HeadDim>::floats * 4;
    const int page = (stages_keys ? key_bytes : 0) + (stages_values ? value_bytes : 0);
    return (output > page ? output : page) + 127;
  }

  __device__ SegmentWarp(const AttendCall<S> &call, const BatchEntry &entry, int head, int tile,
                         QueryStorage<HeadDim> &storage, std::uint8_t *stage)
      : call_(call),
        state_(*entry.state),
        head_(head),
        stage_(stage),
        queries_(storage, call.codings[state_.coding].heads + head, &call.codings[state_.coding].tiles) {
    const int heads = call.query_heads / call.kv_heads, rows = entry.tokens * heads;
    const int first = tile * column_count;
    queries_.template load<DeviceElementOf<S>>(
        [&](int column) -> const DeviceElementOf<S> * {
          const int row = first + column;
          if (row >= rows) return nullptr;
          return reinterpret_cast<const DeviceElementOf<S> *>(
              call.q.row(entry.first_row + row / heads, head * heads + row % heads));
        },
        call.scale);
    const int past = state_.length() - entry.tokens;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first + 2 * (lane_index() % 4) + i;
      limits_[i] = row < rows ? past + row / heads + 1 : past + entry.tokens;
    }
    least_limit_ = past + first / heads + 1;
    most_limit_ = past + (min(first + column_count, rows) - 1) / heads + 1;
    begin();
  }

  __device__ void begin() {
    columns_.clear();
    sums_.clear();
  }

  /// Attends to the blocks [first, last) of exact rows, sinks' before the tail's.
  __device__ void exact(int first, int last) {
    queries_.face(0);
    for (int begin = first; begin < last; begin += exact_unit_tiles) {
      float c[exact_unit_tiles][4];
#pragma unroll
      for (int i = 0; i < exact_unit_tiles; ++i) {
        if (begin + i < last) {
          const ExactBlock block = find_block(begin + i);
          score_exact<T>(block.template tiles<T>(0), queries_, c[i]);
          mask(c[i], block.position, 0, block.end);
        } else {
          c[i][0] = c[i][1] = c[i][2] = c[i][3] = -INFINITY;
        }
      }
      exponentiate(c, {queries_.unit(0), queries_.unit(1)}, columns_, sums_);
#pragma unroll
      for (int i = 0; i < exact_unit_tiles; ++i) {
        if (begin + i < last) {
          sum_exact<T>(find_block(begin + i).template tiles<T>(Block::part_elements), c[i], sums_);
        }
      }
    }
  }

  /// Attends to the pages [first, last).
  __device__ void pages(int first, int last) {
    while (last > first && state_.pages[last - 1].before >= most_limit_) --last;
    if (first >= last) return;
    PageEntry page = state_.pages[first], next = page;
    copy_keys(page);
    for (int i = first; i < last; ++i, page = next) {
      copy_values(page);
      if (i + 1 < last) next = state_.pages[i + 1];
      float c[Layout::token_tiles][4];
      const float2 factors = score(page, c);
      const int end = page.first + page.tokens;
      if (page.first > 0 || end < Layout::Group || page.before + page.tokens > least_limit_) {
        // The limits count a page's tokens from the first that counts.
#pragma unroll
        for (int tile = 0; tile < Layout::token_tiles; ++tile) {
          mask(c[tile], page.before - page.first + 16 * tile, page.before, page.before + page.tokens);
        }
      }
      __syncwarp();
      if (i + 1 < last) copy_keys(next);
      exponentiate(c, factors, columns_, sums_);
      if constexpr (stages_values) {
        i + 1 < last ? wait_for_copies<stages_keys ? 1 : 0>() : wait_for_copies<0>();
        sum_packed<Layout, Values>(value_stage() - Layout::value_codes, c, sums_);
        __syncwarp();
      } else {
        const std::uint8_t *values = page_head(page) + Layout::value_codes;
#pragma unroll
        for (int tile = 0; tile < Layout::token_tiles; ++tile) {
          sum_exact<T>(reinterpret_cast<const ExactTile<T> *>(values + tile * Layout::value_step_bytes), c[tile],
                       sums_);
        }
      }
    }
  }

  /// Writes what the warp found out to its stage: a slot.
  __device__ void store(bool packed) {
    const int lane = lane_index();
    auto *slot = reinterpret_cast<float4 *>(stage_);
    const bool codes = packed && stages_values;
    const float unit = sums_.unit / weight_range;
    const float code_factor = codes ? code_unit * unit : 1 / weight_range;
    const float middle = codes ? (Values == ValueCoding::plain ? 1.0f : -middle_code_of(Layout::ValueBits)) * unit
                               : 0.0f;
#pragma unroll
    for (int i = 0; i < steps; ++i) {
      const float(&c)[4] = sums_.codes[i];
      const float(&k)[4] = sums_.constant[Values == ValueCoding::plain ? i / 2 : 0];
      slot[i * warp_lanes + lane] = {c[0] * code_factor + k[0] * middle, c[1] * code_factor + k[1] * middle,
                                     c[2] * code_factor + k[2] * middle, c[3] * code_factor + k[3] * middle};
    }
    float *states = reinterpret_cast<float *>(stage_) + SlotLayout<HeadDim>::states;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = sum_rows(columns_.sum[i]);
      if (lane < 4) {
        states[2 * lane + i] = columns_.maximum[i];
        states[column_count + 2 * lane + i] = sum;
      }
    }
  }

 private:
  __host__ __device__ static constexpr float middle_code_of(int bits) { return static_cast<float>((1 << bits) - 1) / 2; }

  /// 16 exact rows, of which those at positions below `end` count.
  struct ExactBlock {
    const std::uint16_t *elements;
    int position;
    int end;

    template <class Scalar>
    __device__ const ExactTile<Scalar> *tiles(int offset) const {
      return reinterpret_cast<const ExactTile<Scalar> *>(elements + offset);
    }
  };

  __device__ ExactBlock find_block(int block) const {
    const int sink_blocks = (state_.sinks + 15) / 16;
    const bool sink = block < sink_blocks;
    int index = sink ? block : block - sink_blocks;
    const int position = 16 * index + (sink ? 0 : state_.sinks + state_.paged_tokens);
    if (!sink) {
      index += state_.tail_first / 16;
      index = state_.sink_blocks + (index < state_.tail_blocks ? index : index - state_.tail_blocks);
    }
    const auto *elements = static_cast<const std::uint16_t *>(state_.exact) +
                           (static_cast<std::size_t>(head_) * state_.blocks() + index) * Block::elements;
    return {elements, position, sink ? state_.sinks : state_.length()};
  }

  __device__ const std::uint8_t *page_head(const PageEntry &page) const {
    return page.data + static_cast<std::size_t>(head_) * Layout::head_bytes(Values);
  }
  __device__ std::uint8_t *value_stage() const { return stage_ + (stages_keys ? key_bytes : 0); }

  __device__ void copy_keys(const PageEntry &page) {
    if constexpr (stages_keys) {
      copy_async(stage_, page_head(page), key_bytes);
      commit_copies();
    }
  }
  __device__ void copy_values(const PageEntry &page) {
    if constexpr (stages_values) {
      copy_async(value_stage(), page_head(page) + Layout::value_codes, value_bytes);
      commit_copies();
    }
  }

  __device__ float2 score(const PageEntry &page, float (&c)[Layout::token_tiles][4]) {
    if constexpr (stages_keys) {
      queries_.enter(page.base);
      wait_for_copies<stages_values ? 1 : 0>();
      return score_packed<Layout>(stage_, queries_, page.row, c);
    } else {
      queries_.face(page.base);
      const std::uint8_t *keys = page_head(page);
#pragma unroll
      for (int tile = 0; tile < Layout::token_tiles; ++tile) {
        score_exact<T>(reinterpret_cast<const ExactTile<T> *>(keys + tile * HeadDim * 32), queries_, c[tile]);
      }
      return {queries_.unit(0), queries_.unit(1)};
    }
  }

  /// Takes out of a tile of 16 tokens, the first at `position`, those that lie before `begin` or not before
  /// `end` or a column's limit.
  __device__ void mask(float (&c)[4], int position, int begin, int end) const {
    const int row = position + lane_index() / 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at = row + (j < 2 ? 0 : 8);
      if (at < begin || at >= min(end, limits_[j % 2])) c[j] = -INFINITY;
    }
  }

  const AttendCall<S> &call_;
  const LayerState &state_;
  int head_;
  std::uint8_t *stage_;
  Queries<HeadDim> queries_;
  ColumnState columns_;
  Sums sums_;
  int limits_[2];     // of the lane's columns: positions below are seen
  int least_limit_;   // of all columns
  int most_limit_;
};

/// Sums up the units and segments of the batch, [entries + 1], by all threads of a block.
template <class S>
__device__ inline void find_starts(const AttendCall<S> &call, EntryStart *starts) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int i = thread; i < call.entries; i += threads) {
    const EntryShape shape(call, call.batch[i]);
    const int segments = shape.tiles * call.kv_heads;
    starts[i + 1] = {segments * shape.units, segments};
  }
  if (thread == 0) starts[0] = {0, 0};
  __syncthreads();
  if (thread < warp_lanes) {  // a scan of 32 entries at a time
    EntryStart carry{0, 0};
    for (int first = 0; first < call.entries; first += warp_lanes) {
      const int i = first + thread;
      EntryStart own = i < call.entries ? starts[i + 1] : EntryStart{0, 0};
      for (int step = 1; step < warp_lanes; step *= 2) {
        const int unit = __shfl_up_sync(0xffffffffu, own.unit, step);
        const int segment = __shfl_up_sync(0xffffffffu, own.segment, step);
        if (thread >= step) own.unit += unit, own.segment += segment;
      }
      own.unit += carry.unit, own.segment += carry.segment;
      if (i < call.entries) starts[i + 1] = own;
      carry = {__shfl_sync(0xffffffffu, own.unit, 31), __shfl_sync(0xffffffffu, own.segment, 31)};
    }
  }
  __syncthreads();
}

/// The last entry whose `member` is at most `value`, among those that have any.
template <class Member>
__device__ inline int find_entry(const EntryStart *starts, int entries, int value, Member member) {
  int low = 0, high = entries;  // starts[low] <= value < starts[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (starts[middle].*member <= value ? low : high) = middle;
  }
  return low;
}

/// Shared memory of a block's warps.
template <class Warp>
__host__ __device__ constexpr int warps_bytes() {
  return block_warps * (Warp::stage_bytes() / 128 * 128 + static_cast<int>(sizeof(QueryStorage<Warp::HeadDim>)));
}

/// Blocks that a processor's shared memory has room for, at most as many as leave the registers a warp needs.
template <class Warp>
constexpr int blocks_of_a_processor() {
  constexpr int most = Warp::HeadDim > 128 ? 2 : 3, room = 227 * 1024, others = 2048;
  constexpr int blocks = room / (warps_bytes<Warp>() + others);
  return blocks < 1 ? 1 : blocks < most ? blocks : most;
}

template <class Layout, ValueCoding Values, class T, class S>
__global__ void __launch_bounds__(block_threads, (blocks_of_a_processor<SegmentWarp<Layout, Values, T, S>>()))
    attend_kernel(const AttendCall<S> call) {
  using Warp = SegmentWarp<Layout, Values, T, S>;
  extern __shared__ std::uint8_t shared[];
  auto *stages = reinterpret_cast<std::uint8_t *>((reinterpret_cast<std::uintptr_t>(shared) + 127) / 128 * 128);
  constexpr int stage_bytes = Warp::stage_bytes() / 128 * 128;
  constexpr bool rotated = Layout::ValueBits < 16 && Values == ValueCoding::symmetric;
  auto *storages = reinterpret_cast<QueryStorage<Layout::HeadDim> *>(stages + block_warps * stage_bytes);
  auto *starts = reinterpret_cast<EntryStart *>(storages + block_warps);
  find_starts(call, starts);
  const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
  const int units = starts[call.entries].unit;
  const int block = static_cast<int>(blockIdx.x), blocks = busy_blocks(units, static_cast<int>(gridDim.x));
  if (block >= blocks) return;
  int unit = static_cast<int>(run_start(units, block, blocks));
  const int last = static_cast<int>(run_start(units, block + 1, blocks));
  while (unit < last) {
    const int index = find_entry(starts, call.entries, unit, &EntryStart::unit);
    const BatchEntry entry = call.batch[index];
    const EntryShape shape(call, entry);
    const int segment = (unit - starts[index].unit) / shape.units;  // of the entry
    const int first = (unit - starts[index].unit) % shape.units;
    const int count = min(shape.units - first, last - unit);
    const int head = segment / shape.tiles, tile = call.first_tile + segment % shape.tiles;
    Warp work(call, entry, head, tile, storages[warp], stages + warp * stage_bytes);
    const int slot_segment = starts[index].segment + segment;
    const auto run = [&](bool packed, int begin, int end) {
      if (begin >= end) return;
      const int from = begin + (end - begin) * warp / block_warps;
      const int to = begin + (end - begin) * (warp + 1) / block_warps;
      work.begin();
      packed ? work.pages(from, to) : work.exact(from, to);
      __syncwarp();
      work.store(packed);
      __syncthreads();
      merge_stages<Layout::HeadDim>(stages, stage_bytes, block_warps,
                                    slot_of<Layout::HeadDim>(call, slot_segment, block, packed));
      __syncthreads();
    };
    const int first_block = first * exact_unit_tiles, last_block = (first + count) * exact_unit_tiles;
    run(false, first_block, min(last_block, shape.exact_blocks));
    run(true, max(first - shape.exact_units, 0), first + count - shape.exact_units);
    const SegmentSlots slots(units, blocks, unit - first, shape);
    if (is_last(call.arrived + slot_segment, slots.blocks())) {
      merge_slots<Layout::HeadDim, rotated>(call, entry, head, tile, slots, slot_segment,
                                            reinterpret_cast<float *>(stages), storages);
    }
    unit += count;
  }
}

}  // namespace squat::cuda
