#pragma once

// Launches attention: a grid that just fills the device.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "squat/config.hpp"
#include "squat/cuda/attend.cuh"
#include "squat/cuda/error.hpp"
#include "squat/quantize/coding.hpp"

namespace squat::cuda {

/// Column tiles an attention of many tokens takes at a time, so that its workspace stays bounded.
inline constexpr int most_segments = 8192;

/// Blocks of the attention's grid at most, on any device: a merge's shared memory has room for their slots.
inline constexpr int most_blocks = 480;

/// Column tiles of `tokens` tokens of a sequence.
constexpr int column_tiles(int tokens, int heads_per_kv_head) {
  return (tokens * heads_per_kv_head + column_count - 1) / column_count;
}

/// Column tiles of an entry a launch takes.
inline int tiles_at_once(int entries, int kv_heads, int most_tokens, int heads_per_kv_head) {
  const int tiles = std::max(1, most_segments / std::max(1, entries * kv_heads));
  return std::min(tiles, column_tiles(most_tokens, heads_per_kv_head));
}

/// Sequences times KV heads an attention takes at most: the workspace begins with a counter for each segment of
/// a launch, all 0 before and after.
inline constexpr int most_counters = 65536;
inline constexpr std::size_t counter_bytes = most_counters * sizeof(std::uint32_t);

/// Bytes of the workspace of an attention of `entries` sequences of at most `most_tokens` tokens each.
inline std::size_t attend_workspace_bytes(int head_dim, int entries, int query_heads, int kv_heads,
                                          int most_tokens) {
  const int tiles = tiles_at_once(entries, kv_heads, most_tokens, query_heads / kv_heads);
  const std::size_t slots = 2 * (static_cast<std::size_t>(entries) * kv_heads * tiles + most_blocks);
  const std::size_t floats = static_cast<std::size_t>(head_dim) / 16 * warp_lanes * 4 + 2 * column_count;
  return counter_bytes + slots * floats * sizeof(float);
}

template <class Layout, ValueCoding Values, class T, class S>
void launch_attend_coded(AttendCall<S> call, int most_tokens, void *workspace, cudaStream_t stream) {
  using Warp = SegmentWarp<Layout, Values, T, S>;
  const auto kernel = attend_kernel<Layout, Values, T, S>;
  const std::size_t starts_bytes = (static_cast<std::size_t>(call.entries) + 1) * sizeof(EntryStart);
  const std::size_t shared = 128 + warps_bytes<Warp>() + starts_bytes;
  int device = 0, processors = 0, blocks = 0;
  check(cudaGetDevice(&device), "attend");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "attend");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "attend: shared memory");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, block_threads, shared), "attend");
  blocks = std::min(blocks * processors, most_blocks);

  const int heads = call.query_heads / call.kv_heads;
  call.scale *= log2_e;
  call.most_tiles = tiles_at_once(call.entries, call.kv_heads, most_tokens, heads);
  call.arrived = static_cast<std::uint32_t *>(workspace);
  call.slots = reinterpret_cast<float *>(static_cast<std::byte *>(workspace) +
                                         counter_bytes);
  for (call.first_tile = 0; call.first_tile < column_tiles(most_tokens, heads);
       call.first_tile += call.most_tiles) {
    kernel<<<static_cast<unsigned>(blocks), block_threads, shared, stream>>>(call);
    check(cudaGetLastError(), "attend");
  }
}

/// Attends for every entry of a batch, each of 1 to `most_tokens` tokens. `call`: all but what the launch
/// fills in (arrived, slots, tiles); its scale is the attention scale. workspace: attend_workspace_bytes(),
/// aligned to 16 bytes, the first counter_bytes of them 0 before the first call.
template <class Layout, class T, class S>
void launch_attend(const AttendCall<S> &call, ValueCoding values, int most_tokens, void *workspace,
                   cudaStream_t stream) {
  if (call.entries == 0) return;
  if (Layout::ValueBits < 16 && values == ValueCoding::plain) {
    launch_attend_coded<Layout, ValueCoding::plain, T>(call, most_tokens, workspace, stream);
  } else {
    launch_attend_coded<Layout, ValueCoding::symmetric, T>(call, most_tokens, workspace, stream);
  }
}

}  // namespace squat::cuda
