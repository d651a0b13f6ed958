#pragma once

// What a call packs: the pages that are due of every entry's tail.

#include <cstdint>

#include "squat/cache/tail_rule.hpp"
#include "squat/coding/coding.hpp"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// The packing of one call, the same for keys, values and the count behind them.
struct PackCall {
  const BatchEntry *batch;
  int entries;
  int most_pages;  ///< of an entry; 1 for a decode step
  int kv_heads;
  int residual;
  const CodingTables *codings;  ///< by LayerState::coding
  Coding coding;
  AffineFit fit;
  ValueCoding values;
};

/// Pages of `group` tokens that are due.
__device__ inline int due_pages(const LayerState &state, const PackCall &call, int group) {
  if (call.codings[state.coding].learnt == 0) return 0;
  const TailRule<std::int32_t> rule{call.residual, group};
  return min(rule.due_pages(state.tail), min(call.most_pages, state.page_capacity - state.page_count));
}

/// The memory of due page `page`; null where it is not due. Entries of pages to come are filled in their
/// order: the first without memory ends what can be packed.
__device__ inline std::uint8_t *due_page(const LayerState &state, const PackCall &call, int page,
                                         int group) {
  if (page >= due_pages(state, call, group)) return nullptr;
  return const_cast<std::uint8_t *>(state.pages[state.page_count + page].data);
}

}  // namespace squat::cuda
