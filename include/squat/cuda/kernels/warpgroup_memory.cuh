#pragma once

// What the warpgroups of a block of attend_warpgroups.cuh share: its memory, and what all of them know
// of a segment.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/cuda/kernels/barrier_copy.cuh"
#include "squat/cuda/kernels/exact_blocks.cuh"
#include "squat/cuda/kernels/row_call.cuh"
#include "squat/cuda/kernels/score_rule.cuh"
#include "squat/cuda/kernels/shared_memory.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/kernels/warpgroup_products.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

inline constexpr int group_threads = 128;  // of a warpgroup
inline constexpr int group_rows = 64;

/// What those who have query rows want to know of a page.
struct StagedPage {
  long long base = 0;  // as in PageEntry
  std::int32_t first = 0, tokens = 0, before = 0;

  StagedPage() = default;
  __device__ explicit StagedPage(const PageEntry &entry)
      : base(entry.base), first(entry.first), tokens(entry.tokens), before(entry.before) {}
};

/// What the warpgroups of a block share.
template <int HeadDimension>
struct GroupMemory {
  static constexpr int HeadDim = HeadDimension, rows = 2 * group_rows, tokens = 128;
  static constexpr int stages = 2;
  static constexpr int key_bytes = tokens * HeadDim * 2;  // of a unit
  /// Behind the channels of a step of values stand eight columns of ones: with them weights are added
  /// up.
  static constexpr int value_columns = HeadDim + 8;
  static constexpr int value_step = operand_step_bytes(value_columns);
  static constexpr int value_bytes = tokens / 16 * value_step;
  static constexpr int query_bytes = group_rows * HeadDim * 2;

  static constexpr int queries = 0;  // of each warpgroup
  static constexpr int keys = queries + 2 * query_bytes;
  static constexpr int values = keys + stages * key_bytes;
  static constexpr int pages = values + stages * value_bytes;
  static constexpr int ring = 4;  // of pages, which are read when a stage of keys is free again
  static constexpr int units = pages + ring * static_cast<int>(sizeof(StagedPage));
  static constexpr int barriers = units + rows * 4;
  static constexpr int bytes = barriers + 4 * stages * 8;

  std::uint8_t *memory;

  __device__ Word key_stage(int unit) const {
    return shared_address(memory) + static_cast<Word>(keys + unit % stages * key_bytes);
  }
  __device__ Word value_stage(int unit) const {
    return shared_address(memory) + static_cast<Word>(values + unit % stages * value_bytes);
  }
  /// Written and read by the lanes that arrive at barriers.
  __device__ StagedPage &page(int unit) const {
    return reinterpret_cast<StagedPage *>(memory + pages)[unit % ring];
  }
  /// part: 0 of keys, 1 of values.
  __device__ CopyBarrier *full(int unit, int part) const { return barrier(unit, part); }
  __device__ CopyBarrier *free(int unit, int part) const { return barrier(unit, 2 + part); }
  __device__ static unsigned phase(int unit) { return static_cast<unsigned>(unit / stages & 1); }

  /// By the first thread of the block, before a barrier of all.
  __device__ void init() const {
    constexpr int producers = 4, consumers = 8;  // warps
    for (int unit = 0; unit < stages; ++unit) {
      for (int part = 0; part < 2; ++part) {
        init_barrier(full(unit, part), producers);
        init_barrier(free(unit, part), consumers);
      }
    }
    fence_barriers();
  }
  /// Writes the columns of ones, by all threads of the block.
  __device__ void write_ones() const {
    for (int i = static_cast<int>(threadIdx.x); i < stages * tokens / 16 * 64;
         i += static_cast<int>(blockDim.x)) {
      std::uint8_t *step = memory + values + i / 64 * value_step;
      reinterpret_cast<Word *>(step + operand_step_bytes(HeadDim))[i % 64] = two_ones;
    }
    publish_operand();
  }

 private:
  __device__ CopyBarrier *barrier(int unit, int kind) const {
    return reinterpret_cast<CopyBarrier *>(memory + barriers) + kind * stages + unit % stages;
  }
};

/// What both kinds of warpgroups know of a segment. Ruled: something becomes of scores.
template <class Memory, int Group, bool Ruled, class S>
class GroupSegment {
 public:
  static constexpr int HeadDim = Memory::HeadDim, rows = Memory::rows;
  static constexpr int step_tiles = Memory::tokens / 16, page_steps = 1;
  static_assert(Group == Memory::tokens);
  using Pages = ExactPageLayout<HeadDim, Group>;

  /// met: units that the block has met before.
  __device__ GroupSegment(const RowCall<S> &rows_call, const Memory &memory, int &met,
                          const BatchEntry &entry, const RowShape &shape, int first_page, int head,
                          int tile)
      : call_(rows_call),
        memory_(memory),
        met_(met),
        entry_(entry),
        shape_(shape),
        state_(*entry.state),
        chunk_page_(first_page + shape.first_page - rows_call.first_page),
        head_(head),
        first_row_(tile * rows) {
    const AttendCall<S> &call = rows_call.call;
    most_limit_ = call.template most_seen<Ruled>(entry, state_.length(),
                                                 min(first_row_ + rows, call.rows(entry)) - 1);
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

 protected:
  __device__ ExactBlocks<HeadDim> exact_blocks() const { return {state_, entry_}; }
  __device__ bool in_place() const { return call_.pages_are_exact != 0; }
  __device__ const ScoreRule &rule() const { return call_.call.rule; }

  const RowCall<S> &call_;
  const Memory &memory_;
  int &met_;
  const BatchEntry &entry_;
  const RowShape &shape_;
  const LayerState &state_;
  int chunk_page_;  // where the sequence's first page of the chunk stands in it
  int head_;
  int first_row_;
  int most_limit_;  // positions below are seen by any of the block's rows
};

}  // namespace squat::cuda
