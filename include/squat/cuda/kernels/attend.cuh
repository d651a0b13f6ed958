#pragma once

// Attention of a batch of queries over sinks, pages and tails.
//
// Eight query rows of a token and KV head (more heads a KV head or more tokens: several such column
// tiles) meet the context of their sequence and layer, a segment: first its exact rows in units of some
// tokens, then its pages, one a unit. All units of all segments follow each other and are dealt out in
// equal runs to the warps of a grid that just fills the device, the workers, which keep a running
// softmax in registers and wait for nobody. What one finds out about a segment goes to a slot of the
// workspace; a kernel behind this one adds the slots of each segment up (merge.cuh).
//
// Counts are read on the device: the launch depends on the batch's size alone.
//
// Queries come in sets, one a tile (query_sets.cuh). A warp's page is copied to shared memory
// asynchronously: its keys while the page before it goes through softmax and values, its values while
// the keys are scored. One page of buffer a warp is enough.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/cuda/kernels/attend_call.cuh"
#include "squat/cuda/kernels/merge.cuh"
#include "squat/cuda/kernels/query_sets.cuh"
#include "squat/cuda/kernels/running_softmax.cuh"
#include "squat/cuda/kernels/score_keys.cuh"
#include "squat/cuda/kernels/sum_values.cuh"
#include "squat/cuda/kernels/transform_queries.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/exact_tiles.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"
#include "squat/cuda/state/exact_slots.cuh"

namespace squat::cuda {

/// One warp's work on segments.
template <class Layout, ValueCoding Values, class T, class S>
class SegmentWarp {
 public:
  static constexpr int HeadDim = Layout::HeadDim;
  static constexpr int steps = HeadDim / 16;
  using Block = BlockLayout<HeadDim>;
  using Sums = OutputSums<HeadDim, Values>;
  using Set = QuerySet<HeadDim>;
  static constexpr bool stages_keys = Layout::KeyBits < 16, stages_values = Layout::ValueBits < 16;
  static constexpr int key_bytes = Layout::value_codes;
  static constexpr int value_bytes = Layout::head_bytes(Values) - Layout::value_codes;
  static constexpr int weight_bytes =
      Layout::token_tiles * warp_lanes * static_cast<int>(sizeof(TokenWeights));

  /// Tiles of a unit of exact rows: they take about as long as a page.
  static constexpr int exact_tiles = exact_unit_tiles(Layout::head_bytes(Values), HeadDim);

  /// Tiles of exact pages whose keys are scored before their values are summed, and tiles on their way.
  static constexpr int tiles_together = Layout::token_tiles < 4 ? Layout::token_tiles : 4;
  static constexpr int ring_tiles = HeadDim <= 128 ? 3 : 2, ring_bytes = ring_tiles * steps * 512;

  /// Shared memory of a warp: a page's head between its query set and the weights of its tokens; or the
  /// queries of exact rows.
  __host__ __device__ static constexpr int stage_bytes() {
    constexpr int queries = static_cast<int>(sizeof(QueryStorage<HeadDim>)) +
                            (stages_keys || stages_values ? 0 : ring_bytes);
    const int page =
        stage_keys() + (stages_keys ? key_bytes : 0) + (stages_values ? value_bytes + weight_bytes : 0);
    return ((page > queries ? page : queries) + 127) / 128 * 128;
  }

  __device__ SegmentWarp(const AttendCall<S> &call, const BatchEntry &entry, const EntryStart &start,
                         int segment, int head, int tile, std::uint8_t *stages)
      : call_(call),
        entry_(entry),
        start_(start),
        state_(*entry.state),
        coding_(call.codings[state_.coding]),
        segment_(segment),
        head_(head),
        tile_(tile),
        stage_(stages + warp_index() * stage_bytes()) {
    const int heads = call.query_heads / call.kv_heads, rows = entry.tokens * heads;
    const int first = tile * column_count;
    const int past = state_.length() - entry.tokens;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first + 2 * (lane_index() % 4) + i;
      limits_[i] = row < rows ? past + row / heads + 1 : past + entry.tokens;
    }
    least_limit_ = past + first / heads + 1;
    most_limit_ = past + (min(first + column_count, rows) - 1) / heads + 1;
  }

  /// Attends to the blocks [first, last) of exact rows, sinks' before the tail's.
  __device__ void exact(int first, int last) {
    begin();
    Queries<HeadDim> queries = own_queries();
    for (int begin = first; begin < last; begin += exact_tiles) {
      float c[exact_tiles][4];
#pragma unroll
      for (int i = 0; i < exact_tiles; ++i) {
        if (begin + i < last) {
          const ExactBlock block = find_block(begin + i);
          score_exact(FetchedTiles<T, steps>(block.template tiles<T>(0)), queries, c[i]);
          mask(c[i], block.position, 0, block.end);
        } else {
          c[i][0] = c[i][1] = c[i][2] = c[i][3] = -INFINITY;
        }
      }
      TokenWeights weights[exact_tiles];
      softmax_.template operator()<true>(c, {queries.unit(0), queries.unit(1)}, sums_, weights);
#pragma unroll
      for (int i = 0; i < exact_tiles; ++i) {
        if (begin + i < last) {
          sum_exact(
              FetchedTiles<T, steps>(find_block(begin + i).template tiles<T>(Block::part_elements)),
              weights[i], sums_);
        }
      }
    }
  }

  /// Attends to the pages [first, last).
  __device__ void pages(int first, int last) {
    begin();
    while (last > first && state_.pages[last - 1].before >= most_limit_) --last;
    if (first >= last) return;
    if constexpr (!stages_keys && !stages_values) {
      exact_pages(first, last);
    } else if constexpr (!stages_keys) {
      Queries<HeadDim> queries = own_queries();
      for_each_page(first, last, [&](const PageEntry &page, float(&c)[Layout::token_tiles][4]) {
        queries.face(page.base);
        const std::uint8_t *keys = page_head(page);
#pragma unroll
        for (int tile = 0; tile < Layout::token_tiles; ++tile) {
          score_exact(
              FetchedTiles<T, steps>(reinterpret_cast<const ExactTile<T> *>(keys + tile * HeadDim * 32)),
              queries, c[tile]);
        }
        return float2{queries.unit(0), queries.unit(1)};
      });
    } else {
      set_holds_ = no_set;
      for_each_page(first, last, [&](const PageEntry &page, float(&c)[Layout::token_tiles][4]) {
        wait_for_copies<stages_values ? 1 : 0>();
        return score_packed<Layout>(stage_ + stage_keys(), query_set(page), coding_.heads[head_],
                                    coding_.tiles, page.row, c);
      });
    }
  }

  /// Writes what was found out to a slot, see SlotLayout.
  __device__ void store(float *slot, bool packed) const {
    const int g = lane_index() / 4, first = lane_index() % 4 * 2;  // column
    const int columns =
        min(column_count, entry_.tokens * (call_.query_heads / call_.kv_heads) - tile_ * column_count);
    const bool codes = packed && stages_values;
    const float unit = sums_.unit / weight_range;
    const float code_factor = codes ? code_unit * unit : 1.0f;
    const float middle =
        codes ? (Values == ValueCoding::plain ? 1.0f : -middle_code_of(Layout::ValueBits)) * unit : 0.0f;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int column = first + j;
      if (column >= columns) break;
      float *to = slot + column * HeadDim + g;
#pragma unroll
      for (int i = 0; i < steps; ++i) {
        const float factor = codes ? code_factor / tile_factor<Layout::ValueBits>(i) : code_factor;
        const float constant = sums_.constant[Values == ValueCoding::plain ? i / 2 : 0][j] * middle;
        to[16 * i] = sums_.codes[i][j] * factor + constant;
        to[16 * i + 8] = sums_.codes[i][j + 2] * factor + constant;
      }
      if (g == 0) {
        slot[SlotLayout<HeadDim>::references + column] = softmax_.reference(j);
        slot[SlotLayout<HeadDim>::weights + column] = sums_.weights[j];
      }
    }
  }

 private:
  __device__ void begin() {
    softmax_.clear();
    sums_.clear();
  }

  __host__ __device__ static constexpr float middle_code_of(int bits) {
    return static_cast<float>((1 << bits) - 1) / 2;
  }

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
    const int token = 16 * (sink ? block : block - sink_blocks);
    if (sink) {
      return {sink_slots<HeadDim>(state_, call_.kv_heads).template block<HeadDim>(head_, token), token,
              state_.sinks};
    }
    return {tail_slots<HeadDim>(state_, call_.kv_heads).template block<HeadDim>(head_, token),
            token + state_.sinks + state_.paged_tokens, state_.length()};
  }

  /// Attends to pages of exact rows, a few tiles of keys and then their values at a time. Tiles pass
  /// through shared memory, for many are on their way then: each lane copies what it reads itself.
  __device__ void exact_pages(int first, int last) {
    constexpr int tiles = tiles_together, of_page = 2 * Layout::token_tiles;
    Queries<HeadDim> queries = own_queries();
    auto *ring = reinterpret_cast<uint4 *>(stage_ + sizeof(QueryStorage<HeadDim>)) + lane_index();
    const int count = (last - first) * of_page;
    const auto slot = [&](int i) { return ring + i % ring_tiles * steps * warp_lanes; };
    const std::uint8_t *copied = nullptr;  // the page of the newest copy
    const auto copy = [&](int i) {
      if (i < count) {
        const int within = i % of_page, part = within % (2 * tiles);
        if (within == 0) copied = page_head(state_.pages[first + i / of_page]);
        const int tile = within / (2 * tiles) * tiles + part % tiles;
        const auto *from = reinterpret_cast<const uint4 *>(
            copied + (part < tiles ? 0 : Layout::value_codes) + tile * HeadDim * 32);
#pragma unroll
        for (int step = 0; step < steps; ++step) {
          copy_async(slot(i) + step * warp_lanes, from + step * warp_lanes + lane_index());
        }
      }
      commit_copies();
    };
    int next = 0;  // tile
    const auto with_next = [&](auto &&use) {
      wait_for_copies<ring_tiles - 1>();
      use(ExactTiles<T>{slot(next)});
      copy(next + ring_tiles);
      ++next;
    };
    for (int i = 0; i < ring_tiles; ++i) copy(i);
#pragma unroll 1
    for (int i = first; i < last; ++i) {
      const PageEntry &page = state_.pages[i];
      const int begin = page.before, end = page.before + page.tokens, offset = page.before - page.first;
      const bool masked = page.tokens < Layout::Group || end > least_limit_;
      queries.face(page.base);
#pragma unroll 1
      for (int tile = 0; tile < Layout::token_tiles; tile += tiles) {
        float c[tiles][4];
#pragma unroll
        for (int j = 0; j < tiles; ++j) {
          with_next([&](const ExactTiles<T> &keys) { score_exact(keys, queries, c[j]); });
          if (masked) mask(c[j], offset + 16 * (tile + j), begin, end);
        }
        TokenWeights weights[tiles];
        softmax_.template operator()<true>(c, {queries.unit(0), queries.unit(1)}, sums_, weights);
#pragma unroll
        for (int j = 0; j < tiles; ++j) {
          with_next([&](const ExactTiles<T> &values) { sum_exact(values, weights[j], sums_); });
        }
      }
    }
    wait_for_copies<0>();
  }

  /// Scores the pages [first, last) by score(page, c), and sums their values up.
  template <class Score>
  __device__ void for_each_page(int first, int last, Score &&score) {
    PageEntry page = state_.pages[first], next = page;
    copy_keys(first, page);
    for (int i = first; i < last; ++i, page = next) {
      copy_values(page);
      next = state_.pages[min(i + 1, last - 1)];
      float c[Layout::token_tiles][4];
      page_ = i;
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
      if (i + 1 < last) copy_keys(i + 1, next);
      TokenWeights weights[Layout::token_tiles];
      softmax_.template operator()<!stages_keys>(c, factors, sums_, weights);
      if constexpr (stages_values) {
        i + 1 < last ? wait_for_copies<stages_keys ? 1 : 0>() : wait_for_copies<0>();
        TokenWeights *staged = weight_stage();
#pragma unroll
        for (int tile = 0; tile < Layout::token_tiles; ++tile) {
          staged[tile * warp_lanes + lane_index()] = weights[tile];
        }
        sum_packed<Layout, Values>(value_stage() - Layout::value_codes, staged, sums_);
        __syncwarp();
      } else {
        const std::uint8_t *values = page_head(page) + Layout::value_codes;
#pragma unroll
        for (int tile = 0; tile < Layout::token_tiles; ++tile) {
          sum_exact(FetchedTiles<T, steps>(reinterpret_cast<const ExactTile<T> *>(
                        values + tile * Layout::value_step_bytes)),
                    weights[tile], sums_);
        }
      }
    }
  }

  __device__ const std::uint8_t *page_head(const PageEntry &page) const {
    return page.data + static_cast<std::size_t>(head_) * Layout::head_bytes(Values);
  }
  /// Where a page begins in the stage: behind the queries that face it.
  __host__ __device__ static constexpr int stage_keys() {
    return stages_keys ? static_cast<int>(offsetof(Set, turned))
                       : static_cast<int>(sizeof(QueryStorage<HeadDim>));
  }
  __device__ std::uint8_t *value_stage() const {
    return stage_ + stage_keys() + (stages_keys ? key_bytes : 0);
  }

  __device__ TokenWeights *weight_stage() const {
    return reinterpret_cast<TokenWeights *>(value_stage() + value_bytes);
  }

  /// The queries of exact rows, in the stage while no page is there.
  __device__ Queries<HeadDim> own_queries() const {
    Queries<HeadDim> queries(*reinterpret_cast<QueryStorage<HeadDim> *>(stage_), &coding_.tiles);
    queries.template load<DeviceElementOf<S>>(
        [&](int column) {
          return query_of(call_, entry_.first_row, entry_.tokens * (call_.query_heads / call_.kv_heads),
                          head_, tile_ * column_count + column);
        },
        call_.scale);
    queries.face(0);
    return queries;
  }

  __device__ const Set *global_set(int page) const {
    return set_of<HeadDim>(call_, start_, segment_, state_.page_count, page);
  }

  __device__ void copy_keys(int index, const PageEntry &page) {
    if constexpr (stages_keys) {
      copy_async(stage_ + stage_keys(), page_head(page), key_bytes);
      if (set_holds_ != index - page.tile_page) {
        set_holds_ = index - page.tile_page;
        wait_for_launches();  // of the kernel that makes the sets
        copy_async(stage_, global_set(set_holds_), set_bytes<HeadDim>(coding_.heads[head_].mode_tiles));
      }
      commit_copies();
    }
  }
  __device__ void copy_values(const PageEntry &page) {
    if constexpr (stages_values) {
      copy_async(value_stage(), page_head(page) + Layout::value_codes, value_bytes);
      commit_copies();
    }
  }

  /// The set that meets the page in the stage. Sets are made for pages in the basis; for a page whose
  /// codes are of channels, the set's turned rows, without A^-T, overwrite those in the stage, so that
  /// the next page has to fetch its set again.
  __device__ const Set &query_set(const PageEntry &page) {
    auto &set = *reinterpret_cast<Set *>(stage_);
    if (!in_basis<Layout>(stage_ + stage_keys()) && coding_.heads[head_].basis != nullptr) {
      const Set *from = global_set(page_ - page.tile_page);
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        set.facing[step * warp_lanes + lane_index()] = from->turned[step * warp_lanes + lane_index()];
      }
      set_holds_ = no_set;
      __syncwarp();
    }
    return set;
  }

  /// Takes out of a tile of 16 tokens, the first at `position`, those that lie before `begin` or not
  /// before `end` or a column's limit.
  __device__ void mask(float (&c)[4], int position, int begin, int end) const {
    const int row = position + lane_index() / 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at = row + (j < 2 ? 0 : 8);
      if (at < begin || at >= min(end, limits_[j % 2])) c[j] = -INFINITY;
    }
  }

  static constexpr int no_set = -1;

  const AttendCall<S> &call_;
  const BatchEntry &entry_;
  const EntryStart &start_;
  const LayerState &state_;
  const CodingTables &coding_;
  int segment_;
  int head_;
  int tile_;
  std::uint8_t *stage_;
  int set_holds_ = no_set;  // the page whose set is in the stage
  int page_ = 0;            // in the stage
  RunningSoftmax softmax_;
  Sums sums_;
  int limits_[2];    // of the lane's columns: positions below are seen
  int least_limit_;  // of all columns
  int most_limit_;
};

/// Shared memory of a block's warps.
template <class Warp>
__host__ __device__ constexpr int warps_bytes() {
  return block_warps * Warp::stage_bytes();
}

/// Blocks that a processor's shared memory has room for, at most as many as leave the registers a warp
/// needs.
template <class Warp>
constexpr int blocks_of_a_processor() {
  constexpr int most = Warp::HeadDim > 128 ? 2 : 3, room = 227 * 1024, others = 1536;
  constexpr int blocks = room / (warps_bytes<Warp>() + others);
  return blocks < 1 ? 1 : blocks < most ? blocks : most;
}

template <class Layout, ValueCoding Values, class T, class S>
__global__ void __launch_bounds__(block_threads,
                                  (blocks_of_a_processor<SegmentWarp<Layout, Values, T, S>>()))
    attend_kernel(const AttendCall<S> call) {
  using Warp = SegmentWarp<Layout, Values, T, S>;
  extern __shared__ __align__(128) std::uint8_t stages[];
  auto *starts = reinterpret_cast<EntryStart *>(stages + warps_bytes<Warp>());
  allow_next_launch();
  find_starts(call, Warp::exact_tiles, starts);
  const int units = starts[call.entries].unit;
  const int blocks = static_cast<int>(gridDim.x), busy = busy_workers(units, blocks * block_warps);
  // Of neighbours in different blocks, so that a few units are a few processors' work.
  const int worker = warp_index() * blocks + static_cast<int>(blockIdx.x);
  const int last = worker < busy ? run_start(units, worker + 1, busy) : 0;
  for (int unit = worker < busy ? run_start(units, worker, busy) : 0; unit < last;) {
    const int index = find_entry(starts, call.entries, unit, &EntryStart::unit);
    const BatchEntry entry = call.batch[index];
    const EntryShape shape(call, entry, Warp::exact_tiles);
    const int segment = (unit - starts[index].unit) / shape.units;  // of the entry
    const int first = (unit - starts[index].unit) % shape.units;
    const int end = min(shape.units, first + last - unit);
    const int head = segment / shape.tiles, tile = call.first_tile + segment % shape.tiles;
    Warp work(call, entry, starts[index], segment, head, tile, stages);
    const auto slot = [&](bool packed) {
      return slot_of<Layout::HeadDim>(call, starts[index].segment + segment, worker, packed);
    };
    if (first < shape.exact_units) {
      work.exact(first * Warp::exact_tiles, min(end * Warp::exact_tiles, shape.exact_blocks));
      work.store(slot(false), false);
      __syncwarp();
    }
    if (end > shape.exact_units) {
      work.pages(max(first - shape.exact_units, 0), end - shape.exact_units);
      work.store(slot(true), true);
      __syncwarp();
    }
    unit += end - first;
  }
  wait_for_launches();  // so that what comes behind this kernel comes behind the making of sets
}

}  // namespace squat::cuda
