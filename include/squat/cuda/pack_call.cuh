#pragma once

// What a call packs: the oldest groups of every tail that holds window + group tokens.

#include <algorithm>
#include <cstdint>

#include "squat/cuda/device_state.cuh"
#include "squat/quantize/coding.hpp"

namespace squat::cuda {

/// The packing of one call, the same for keys, values and the count behind them.
struct PackCall {
  const BatchEntry *batch;
  int entries;
  int most_pages;  ///< of an entry; 1 for a decode step
  int kv_heads;
  int window;
  const CodingTables *codings;  ///< by LayerState::coding
  AffineFit fit;
  ValueCoding values;
};

/// Pages of `group` tokens that are due: their entries stand behind the table's count, and have memory.
__device__ inline int due_pages(const LayerState &state, const PackCall &call, int group) {
  if (state.tail < call.window + group || call.codings[state.coding].learnt == 0) return 0;
  const int due = min((state.tail - call.window) / group,
                      min(call.most_pages, state.page_capacity - state.page_count));
  int pages = 0;
  while (pages < due && state.pages[state.page_count + pages].data != nullptr) ++pages;
  return pages;
}

}  // namespace squat::cuda
