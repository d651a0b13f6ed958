#pragma once

// What a call packs: the pages that are due of every entry's tail.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "squat/cache/tail_rule.hpp"
#include "squat/coding/coding.hpp"
#include "squat/cuda/kernels/launch_behind.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/fragments.cuh"
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
  bool recodes = false;  ///< keys of pages that the basis does not suit, where heads share bits
};

/// Whether a page whose heads share bits, and whose keys were coded in the basis, is to stay so: the
/// same for all threads. See BitShares::suit().
__device__ inline bool suits_basis(const CodingTables &coding, const std::uint8_t *page, int kv_heads) {
  if (coding.plain_fits == 0) return true;
  float gain = coding.value_gain;
  for (int head = 0; head < kv_heads; ++head) gain += reinterpret_cast<const float *>(page)[head];
  return gain >= 0;
}

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

/// Grid of a kernel that packs: page of the call, KV head, a share of the entries. So many shares as the
/// device takes blocks at a time: in most steps nothing is due, and a block that finds nothing costs as
/// much to launch as one that packs.
inline dim3 pack_grid(const PackCall &call) {
  const std::int64_t of_an_entry = std::int64_t{call.most_pages} * call.kv_heads;
  const std::int64_t at_a_time = 2 * device_limits().processors;
  const auto shares =
      std::clamp<std::int64_t>((at_a_time + of_an_entry - 1) / of_an_entry, 1, call.entries);
  return dim3(static_cast<unsigned>(call.most_pages), static_cast<unsigned>(call.kv_heads),
              static_cast<unsigned>(shares));
}

/// Calls visit(state, bytes) for the entries of the block's share whose page of the call is due; bytes:
/// of that page. By all threads of a block, which it ends each visit with a barrier of; waits for the
/// kernels in front of it.
template <int Group, class Visit>
__device__ inline void for_each_due_page(const PackCall &call, Visit &&visit) {
  allow_next_launch();
  wait_for_launches();
  const int page = static_cast<int>(blockIdx.x), shares = static_cast<int>(gridDim.z);
#pragma unroll 1
  for (int first = static_cast<int>(blockIdx.z); first < call.entries; first += shares * warp_lanes) {
    const int own = first + lane_index() * shares;
    const bool is = own < call.entries && due_page(*call.batch[own].state, call, page, Group) != nullptr;
    unsigned due = __ballot_sync(0xffffffffu, is);  // every warp finds the same
#pragma unroll 1
    for (; due != 0; due &= due - 1) {
      const LayerState &state = *call.batch[first + (__ffs(static_cast<int>(due)) - 1) * shares].state;
      visit(state, due_page(state, call, page, Group));
      __syncthreads();
    }
  }
}

}  // namespace squat::cuda
