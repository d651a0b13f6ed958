#pragma once

// The exact rows of a sequence as attention of many query rows meets them: blocks of 16 tokens, those of
// the sinks, then those of the tail, with the rows of the call among it.

#include <cstdint>

#include "squat/cuda/kernels/attend_call.cuh"
#include "squat/cuda/kernels/row_call.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"
#include "squat/cuda/state/exact_slots.cuh"

namespace squat::cuda {

/// 16 tokens, the first at `position`: those at [begin, end) count.
struct TokenTile {
  int position, begin, end;
};

/// Those of a page, `token` being the tile's first there.
__device__ inline TokenTile page_tile(const PageEntry &page, int token) {
  return {page.before - page.first + token, page.before, page.before + page.tokens};
}

/// The exact rows of an entry.
template <int HeadDim>
struct ExactBlocks {
  const LayerState &state;
  const BatchEntry &entry;

  __device__ int of_sinks() const { return token_blocks(state.sinks); }

  /// How many units of `step_tiles` of them have tokens at positions below `limit`.
  __device__ int units_seen(int limit, int step_tiles) const {
    const int seen = of_sinks() + token_blocks(max(limit - state.sinks - state.paged_tokens, 0));
    return (seen + step_tiles - 1) / step_tiles;
  }

  /// The first of the units from `first` on, of them or of the chunk's pages, that query rows from
  /// `first_row` on may see under a window.
  template <class S>
  __device__ int first_seen_unit(const AttendCall<S> &call, const RowShape &shape, bool exact, int first,
                                 int first_row, int step_tiles, int page_steps) const {
    const int seen =
        call.rule.first_seen(call.template least_seen<true>(entry, state.length(), first_row));
    if (exact) return max(first, first_unit(seen, step_tiles));
    return max(first, first_page_unit(seen, step_tiles) - shape.first_page * page_steps);
  }

  __device__ TokenTile tokens(int block) const {
    const int sinks = of_sinks();
    if (block < sinks) return {16 * block, 0, state.sinks};
    return {state.sinks + state.paged_tokens + 16 * (block - sinks), 0, state.length()};
  }

  /// The elements of a block of a KV head.
  __device__ const std::uint16_t *rows(int block, int head, int kv_heads) const {
    const int sinks = of_sinks();
    const bool sink = block < sinks;
    const ExactSlots slots = sink                        ? sink_slots<HeadDim>(state, kv_heads)
                             : entry.unpacked != nullptr ? unpacked_slots(entry.unpacked, kv_heads)
                                                         : tail_slots<HeadDim>(state, kv_heads);
    return slots.template block<HeadDim>(head, 16 * (sink ? block : block - sinks));
  }

 private:
  /// The first unit of `step_tiles` of them with tokens at `position` or behind; of a sink's, the first.
  __device__ int first_unit(int position, int step_tiles) const {
    if (position <= state.sinks) return 0;
    const int tail = max(position - state.sinks - state.paged_tokens, 0);
    return (of_sinks() + tail / 16) / step_tiles;
  }
  /// The same of the sequence's pages. Pages that were cut have fewer tokens than counted here, so that
  /// none is left out that counts.
  __device__ int first_page_unit(int position, int step_tiles) const {
    const int paged = max(position - state.pages[0].before, 0);  // those before have left
    return paged / (16 * step_tiles);
  }
};

}  // namespace squat::cuda
