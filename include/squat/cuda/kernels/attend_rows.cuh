#pragma once

// Attention of entries with many query tokens: 64 or 128 query rows a block meet exact pages, unpacked
// ones and exact rows by m16n8k16, queries in columns (FlashAttention-2, Dao 2023).
//
// A block has a run of units of one segment after another (row_call.cuh). A unit's keys and values, at
// most 64 tokens, are copied to shared memory while the unit before is worked on; tiles of 16 tokens lie
// there as they lie in memory, and a lane's 16 bytes of one are A: of keys, for scores, and of values,
// for sums. As B they would be pairs of registers that do not lie beside each other, and a fifth of all
// instructions would be moves. What has to be turned instead are weights, of which there are fewer. Each
// warp has 16 or 32 of the rows, their queries in shared memory, their sums and running softmax in
// registers: at HeadDim 128 a unit takes a warp of 32 rows 272 products, 80 reads of 16 bytes a lane, 64
// powers a lane and 32 transpositions.
//
// Weights are powers of two of scores less a reference, as in row_softmax.cuh; their sum is a
// product with ones, so that the rounding of weights to float16 is an error of the values' deviations
// alone.

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "squat/cuda/kernels/exact_blocks.cuh"
#include "squat/cuda/kernels/query_rows.cuh"
#include "squat/cuda/kernels/row_call.cuh"
#include "squat/cuda/kernels/row_segments.cuh"
#include "squat/cuda/kernels/row_softmax.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/exact_tiles.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// One block's work on segments. RowTiles: tiles of 16 rows a warp. Ruled: something becomes of scores.
template <int HeadDimension, int Group, int RowTiles, bool Ruled, class T, class S>
class RowBlock {
 public:
  static constexpr int HeadDim = HeadDimension, threads = row_threads;
  static constexpr int steps = HeadDim / 16;
  static constexpr int columns = 2 * RowTiles;  // tiles of eight query rows
  static constexpr int warp_rows = 16 * RowTiles, rows = row_warps * warp_rows;
  static constexpr int step_tiles = row_step_tiles(HeadDim, Group);
  static constexpr int page_steps = Group / 16 / step_tiles;  // of a page
  using Pages = ExactPageLayout<HeadDim, Group>;
  using Block = BlockLayout<HeadDim>;

  // Shared memory: queries, two stages of keys and values, page entries, units and limits of rows.
  static constexpr int tile_bytes = HeadDim * 32;  // keys, or values, of 16 tokens
  static constexpr int part_bytes = step_tiles * tile_bytes;
  static constexpr int query_bytes = rows * HeadDim * 2;
  static constexpr int entries = 4;  // of pages: the unit's, and those of two to come
  static constexpr int entry_bytes = entries * static_cast<int>(sizeof(PageEntry));
  static constexpr int stage_bytes =
      query_bytes + 4 * part_bytes + entry_bytes + rows * static_cast<int>(sizeof(float) + sizeof(int));
  __host__ __device__ static constexpr int shared_bytes() { return (stage_bytes + 127) / 128 * 128; }

  __device__ RowBlock(const RowCall<S> &rows, const BatchEntry &entry, const RowShape &shape,
                      int first_page, int head, int tile, std::uint8_t *memory)
      : call_(rows),
        entry_(entry),
        shape_(shape),
        state_(*entry.state),
        coding_(rows.call.codings[state_.coding]),
        chunk_page_(first_page + shape.first_page - rows.first_page),
        head_(head),
        first_row_(tile * RowBlock::rows),
        memory_(memory) {
    const int all = rows.call.rows(entry), length = state_.length();
    const int first = first_row_ + warp_index() * warp_rows;
    __syncwarp();
    for (int i = lane_index(); i < warp_rows; i += warp_lanes) {
      own_limits()[i] = first + i < all ? rows.call.template seen<Ruled>(entry, length, first + i) : 0;
    }
    least_limit_ = rows.call.template least_seen<Ruled>(entry, length, first);
    most_limit_ =
        rows.call.template most_seen<Ruled>(entry, length, min(first_row_ + RowBlock::rows, all) - 1);
  }

  /// The first of the units from `first` on that rows of the block may see.
  __device__ int visible_begin(bool exact, int first) const {
    if (!Ruled || rule().window == 0) return first;
    return exact_blocks().first_seen_unit(call_.call, shape_, exact, first, first_row_, step_tiles,
                                          page_steps);
  }

  /// The end of the units up to `last` that rows of the block see.
  __device__ int visible_end(bool exact, int last) const {
    if (!exact) return last;
    return min(last, exact_blocks().units_seen(most_limit_, step_tiles));
  }

  /// Forgets what was found out.
  __device__ void clear() {
    softmax_.clear();
#pragma unroll
    for (int step = 0; step < steps; ++step) {
#pragma unroll
      for (int n = 0; n < columns; ++n)
        sums_[step][n][0] = sums_[step][n][1] = sums_[step][n][2] = sums_[step][n][3] = 0;
    }
  }

  /// Attends to the units [first, last) of exact rows, or of pages. One loop for both, though these
  /// differ: its code is long, and what runs for the first time comes from memory.
  __device__ void attend(bool exact, int first, int last) {
    if (first >= last) return;
    const bool turns = !exact && call_.pages_are_exact != 0;
    __syncthreads();  // the block's memory is free
    if (!exact) {
      copy_entry(first);
      if (first + 1 < last) copy_entry(first + 1);
    }
    if (turns) {  // entries say where pages are
      commit_copies();
      wait_for_copies<0>();
      __syncthreads();
    }
    copy(exact, first);
    commit_copies();
#pragma unroll 1
    for (int unit = first; unit < last; ++unit) {
      const long long base = turns ? page(unit).base : 0;
      if (!faces_ || base != base_) {
        face(base);
        faces_ = true;
        base_ = base;
      }
      wait_for_copies<0>();
      if (!std::is_same_v<T, half> && (exact || call_.pages_are_exact != 0)) convert(unit);
      __syncthreads();
      if (unit + 1 < last) {
        copy(exact, unit + 1);
        if (!exact && unit + 2 < last) copy_entry(unit + 2);
        commit_copies();
      }
      meet(exact, unit);
    }
  }

  /// Writes what was found out.
  __device__ void store(std::uint8_t *slot) const {
    const int g = lane_index() / 4, t = lane_index() % 4, own = warp_index() * warp_rows;
    auto *logarithms = reinterpret_cast<float *>(slot + query_bytes) + own;
#pragma unroll
    for (int n = 0; n < columns; ++n) {
      float inverse[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float weight = softmax_.weight(2 * n + j);
        inverse[j] = weight > 0 ? 1 / weight : 0.0f;
        if (g == 0) logarithms[8 * n + 2 * t + j] = softmax_.logarithm(2 * n + j);
      }
      auto *to = reinterpret_cast<Word *>(slot + (own + 8 * n + g) * HeadDim * 2) + t;
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        const float *c = sums_[step][n];
        to[step * 8] = transpose(halves(c[0] * inverse[0], c[1] * inverse[1]));
        to[step * 8 + 4] = transpose(halves(c[2] * inverse[0], c[3] * inverse[1]));
      }
    }
  }

 private:
  /// One unit, whose copies are there.
  __device__ void meet(bool exact, int unit) {
    const uint4 *keys = stage(unit) + lane_index(), *values = keys + part_bytes / 16;
    float c[step_tiles][columns][4];
    const uint4 *queries = own_queries() + lane_index();
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      uint4 q[RowTiles];
#pragma unroll
      for (int m = 0; m < RowTiles; ++m) q[m] = queries[(m * steps + step) * warp_lanes];
#pragma unroll
      for (int tile = 0; tile < step_tiles; ++tile) {
        const uint4 k = keys[(tile * steps + step) * warp_lanes];
#pragma unroll
        for (int m = 0; m < RowTiles; ++m) {
          auto &low = c[tile][2 * m], &high = c[tile][2 * m + 1];
          if (step == 0) {
            multiply(low, k.x, k.y, k.z, k.w, q[m].x, q[m].y);
            multiply(high, k.x, k.y, k.z, k.w, q[m].z, q[m].w);
          } else {
            multiply_add(low, k.x, k.y, k.z, k.w, q[m].x, q[m].y);
            multiply_add(high, k.x, k.y, k.z, k.w, q[m].z, q[m].w);
          }
        }
      }
    }
    if constexpr (Ruled) {
      if (rule().bends()) bend(exact, unit, c);
    }
    if (is_masked(exact, unit)) mask(exact, unit, c);
    Word p[step_tiles][columns][2];
    softmax_.weights(c, own_units() + lane_index() % 4 * 2, p, [&](const float(&factors)[2 * columns]) {
#pragma unroll
      for (int step = 0; step < steps; ++step) {
#pragma unroll
        for (int n = 0; n < columns; ++n) {
          sums_[step][n][0] *= factors[2 * n], sums_[step][n][1] *= factors[2 * n + 1];
          sums_[step][n][2] *= factors[2 * n], sums_[step][n][3] *= factors[2 * n + 1];
        }
      }
    });
#pragma unroll
    for (int tile = 0; tile < step_tiles; ++tile) {
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        const uint4 v = values[(tile * steps + step) * warp_lanes];
#pragma unroll
        for (int n = 0; n < columns; ++n) {
          multiply_add(sums_[step][n], v.x, v.y, v.z, v.w, p[tile][n][0], p[tile][n][1]);
        }
      }
    }
  }

  /// Whether tokens of a unit do not count, or rows of the warp do not see them.
  __device__ bool is_masked(bool exact, int unit) const {
    if (!exact) {
      const PageEntry &at = page(unit);
      return at.first != 0 || at.tokens != Group || at.before + Group > least_limit_ ||
             is_behind_window(at.before);
    }
    const TokenTile last = token_tile(true, unit, step_tiles - 1);
    return unit * step_tiles < sink_blocks() || last.position + 16 > min(last.end, least_limit_) ||
           is_behind_window(token_tile(true, unit, 0).position);
  }
  /// Whether rows of the warp do not see a position that they once saw.
  __device__ bool is_behind_window(int position) const {
    if (!Ruled || rule().window == 0) return false;
    const int behind = min(first_row_ + (warp_index() + 1) * warp_rows, call_.call.rows(entry_));
    return position <
           rule().first_seen(call_.call.template most_seen<Ruled>(entry_, state_.length(), behind - 1));
  }

  /// Scores become what the rule makes of them.
  __device__ void bend(bool exact, int unit, float (&c)[step_tiles][columns][4]) const {
    const int g = lane_index() / 4, t = lane_index() % 4, heads = call_.call.heads_per_kv_head;
    const auto own = [&](int i) { return i / 2 * 8 + 2 * t + i % 2; };  // the lane's i-th row
    float units[2 * columns];
#pragma unroll
    for (int i = 0; i < 2 * columns; ++i) units[i] = own_units()[own(i)];
    if (rule().soft_cap > 0) {
      cap_scores(rule(), units, [&](auto &&visit) {
#pragma unroll
        for (auto &of_tile : c) {
#pragma unroll
          for (int i = 0; i < 2 * columns; ++i) {
            visit(of_tile[i / 2][i % 2], i);
            visit(of_tile[i / 2][i % 2 + 2], i);
          }
        }
      });
    }
    if (rule().slopes == nullptr) return;
#pragma unroll
    for (int i = 0; i < 2 * columns; ++i) {
      const int row = first_row_ + warp_index() * warp_rows + own(i);
      const float slope = rule().slope(head_ * heads + row % heads) * inverse_of_power(units[i]);
#pragma unroll
      for (int tile = 0; tile < step_tiles; ++tile) {
        const int distance = own_limits()[own(i)] - 1 - token_tile(exact, unit, tile).position - g;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float &score = c[tile][i / 2][i % 2 + 2 * j];
          score = fmaf(-slope, static_cast<float>(distance - 8 * j), score);
        }
      }
    }
  }

  /// Takes out the scores of tokens that do not count, or that rows do not see.
  __device__ void mask(bool exact, int unit, float (&c)[step_tiles][columns][4]) const {
    const int g = lane_index() / 4, t = lane_index() % 4;
    int limits[2 * columns];
#pragma unroll
    for (int i = 0; i < 2 * columns; ++i) limits[i] = own_limits()[i / 2 * 8 + 2 * t + i % 2];
#pragma unroll
    for (int tile = 0; tile < step_tiles; ++tile) {
      const TokenTile tokens = token_tile(exact, unit, tile);
#pragma unroll
      for (int i = 0; i < 2 * columns; ++i) {
        const int end = min(tokens.end, limits[i]),
                  begin = Ruled ? max(tokens.begin, rule().first_seen(limits[i])) : tokens.begin;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int at = tokens.position + g + 8 * j;
          if (at < begin || at >= end) c[tile][i / 2][i % 2 + 2 * j] = -INFINITY;
        }
      }
    }
  }

  __device__ const ScoreRule &rule() const { return call_.call.rule; }

  __device__ ExactBlocks<HeadDim> exact_blocks() const { return {state_, entry_}; }
  __device__ int sink_blocks() const { return exact_blocks().of_sinks(); }

  __device__ TokenTile token_tile(bool exact, int unit, int tile) const {
    return exact ? exact_blocks().tokens(unit * step_tiles + tile)
                 : page_tile(page(unit), 16 * (unit % page_steps * step_tiles + tile));
  }

  /// Copies a unit's keys and values.
  __device__ void copy(bool exact, int unit) const {
    uint4 *to = stage(unit);
    if (!exact) {  // tiles that follow each other
      const std::uint8_t *from = page_head(unit) + unit % page_steps * part_bytes;
#pragma unroll
      for (int tile = 0; tile < step_tiles; ++tile) {
        copy_tile(to + tile * (tile_bytes / 16), from + tile * tile_bytes);
        copy_tile(to + (part_bytes + tile * tile_bytes) / 16,
                  from + Pages::value_codes + tile * tile_bytes);
      }
      return;
    }
#pragma unroll 1
    for (int tile = 0; tile < step_tiles; ++tile, to += tile_bytes / 16) {
      // Behind the last block stands that one again: as numbers, for what is masked is multiplied by 0.
      const int block = min(unit * step_tiles + tile, shape_.exact_blocks - 1);
      const auto *from =
          reinterpret_cast<const std::uint8_t *>(exact_blocks().rows(block, head_, call_.call.kv_heads));
      copy_tile(to, from);
      copy_tile(to + part_bytes / 16, from + Block::part_elements * 2);
    }
  }
  __device__ static void copy_tile(uint4 *to, const std::uint8_t *from) {
    constexpr int pieces = tile_bytes / 16;
#pragma unroll
    for (int first = 0; first < pieces; first += row_threads) {
      const int i = first + static_cast<int>(threadIdx.x);
      if (pieces % row_threads == 0 || i < pieces) copy_async(to + i, from + i * 16);
    }
  }
  /// Makes float16 of what this thread has copied of a unit.
  __device__ void convert(int unit) const {
    uint4 *from = stage(unit);
#pragma unroll
    for (int part = 0; part < 2 * step_tiles; ++part) {
      for (int i = static_cast<int>(threadIdx.x); i < tile_bytes / 16; i += row_threads) {
        uint4 &at = from[part * (tile_bytes / 16) + i];
        at = ExactTile<T>{at}.halves();
      }
    }
  }

  __device__ const std::uint8_t *page_head(int unit) const {
    constexpr std::size_t head_bytes = Pages::head_bytes(ValueCoding::symmetric);
    if (call_.pages_are_exact != 0)
      return page(unit).data + static_cast<std::size_t>(head_) * head_bytes;
    const std::size_t index = static_cast<std::size_t>(chunk_page_ + unit / page_steps);
    return call_.unpacked +
           (index * static_cast<std::size_t>(call_.call.kv_heads) + static_cast<std::size_t>(head_)) *
               head_bytes;
  }

  /// Copies the entry of a unit's page.
  __device__ void copy_entry(int unit) const {
    constexpr int pieces = sizeof(PageEntry) / 8;
    const int i = static_cast<int>(threadIdx.x);
    if (i >= pieces) return;
    const PageEntry *from = state_.pages + shape_.first_page + unit / page_steps;
    copy_async_8(reinterpret_cast<std::uint8_t *>(page_entries() + unit % entries) + i * 8,
                 reinterpret_cast<const std::uint8_t *>(from) + i * 8);
  }

  /// Turns the warp's queries back by `base`.
  __device__ void face(long long base) const {
    face_rows<OwnQueries<HeadDim>, HeadDim, RowTiles>(
        own_queries(), own_units(), query_rows(call_.call, entry_, head_),
        first_row_ + warp_index() * warp_rows, &coding_.tiles, base);
  }

  __device__ uint4 *own_queries() const {
    return reinterpret_cast<uint4 *>(memory_) + warp_index() * RowTiles * steps * warp_lanes;
  }
  __device__ uint4 *stage(int unit) const {
    return reinterpret_cast<uint4 *>(memory_ + query_bytes + unit % 2 * 2 * part_bytes);
  }
  __device__ PageEntry *page_entries() const {
    return reinterpret_cast<PageEntry *>(memory_ + query_bytes + 4 * part_bytes);
  }
  __device__ const PageEntry &page(int unit) const { return page_entries()[unit % entries]; }
  /// The units of the warp's rows, what queries are divided by.
  __device__ float *own_units() const {
    return reinterpret_cast<float *>(memory_ + query_bytes + 4 * part_bytes + entry_bytes) +
           warp_index() * warp_rows;
  }
  /// Positions below are seen.
  __device__ int *own_limits() const {
    return reinterpret_cast<int *>(memory_ + query_bytes + 4 * part_bytes + entry_bytes) + rows +
           warp_index() * warp_rows;
  }

  const RowCall<S> &call_;
  const BatchEntry &entry_;
  const RowShape &shape_;
  const LayerState &state_;
  const CodingTables &coding_;
  int chunk_page_;  // where the sequence's first page of the chunk stands in it
  int head_;
  int first_row_;
  std::uint8_t *memory_;
  int least_limit_;     // of the warp's rows
  int most_limit_;      // of the block's
  bool faces_ = false;  // queries are there, turned back by base_
  long long base_ = 0;
  RowSoftmax<RowTiles> softmax_;
  float sums_[steps][columns][4];  // rows are channels, columns query rows
};

/// Work: what a block does with a segment, RowBlock or ValueCodeBlock.
template <class Work, class S>
__global__ void __launch_bounds__(Work::threads, 2) attend_rows(const RowCall<S> rows) {
  extern __shared__ __align__(128) std::uint8_t row_memory[];
  auto *starts = reinterpret_cast<RowStart *>(row_memory + Work::shared_bytes());
  allow_next_launch();
  find_row_starts(rows, Work::rows, Work::step_tiles, Work::page_steps, starts);
  visit_row_segments<Work>(rows, starts,
                           [&](const auto &...segment) { return Work(rows, segment..., row_memory); });
}

}  // namespace squat::cuda
