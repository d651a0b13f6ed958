#pragma once

// Launches attention: the grid that just fills the device, and the merge behind it.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "squat/config.hpp"
#include "squat/cuda/attend.cuh"
#include "squat/cuda/error.hpp"
#include "squat/cuda/merge.cuh"
#include "squat/quantize/coding.hpp"

namespace squat::cuda {

/// Column tiles an attention of many tokens takes at a time, so that its workspace stays bounded.
inline constexpr int most_segments = 8192;

/// Blocks of the attention's grid at most, on any device: 256 processors of 4 blocks.
inline constexpr int most_blocks = 1024;

/// Column tiles of `tokens` tokens of a sequence.
constexpr int column_tiles(int tokens, int heads_per_kv_head) {
  return (tokens * heads_per_kv_head + column_count - 1) / column_count;
}

/// Column tiles of an entry a launch takes.
inline int tiles_at_once(int entries, int kv_heads, int most_tokens, int heads_per_kv_head) {
  const int tiles = std::max(1, most_segments / std::max(1, entries * kv_heads));
  return std::min(tiles, column_tiles(most_tokens, heads_per_kv_head));
}

/// Bytes of the workspace of an attention of `entries` sequences of at most `most_tokens` tokens each.
inline std::size_t attend_workspace_bytes(int head_dim, int entries, int query_heads, int kv_heads,
                                          int most_tokens) {
  const int tiles = tiles_at_once(entries, kv_heads, most_tokens, query_heads / kv_heads);
  const std::size_t slots = 2 * (static_cast<std::size_t>(entries) * kv_heads * tiles + most_blocks);
  const std::size_t floats = static_cast<std::size_t>(head_dim) / 16 * warp_lanes * 4 + 2 * column_count;
  const std::size_t starts = (static_cast<std::size_t>(entries) + 1) * sizeof(EntryStart);
  return (starts + 15) / 16 * 16 + slots * floats * sizeof(float);
}

template <class Layout, ValueCoding Values, class T, class S>
void launch_attend_coded(AttendCall<S> call, int most_tokens, void *workspace, cudaStream_t stream) {
  constexpr int head_dim = Layout::HeadDim;
  constexpr bool rotated = Layout::ValueBits < 16 && Values == ValueCoding::symmetric;
  using Warp = SegmentWarp<Layout, Values, T, S>;
  const auto kernel = attend_kernel<Layout, Values, T, S>;
  const auto merge = merge_kernel<head_dim, rotated, S>;
  constexpr std::size_t warp_bytes = Warp::stage_bytes() / 128 * 128 + sizeof(QueryStorage<head_dim>);
  const std::size_t starts_bytes = (static_cast<std::size_t>(call.entries) + 1) * sizeof(EntryStart);
  const std::size_t shared = 128 + block_warps * warp_bytes + starts_bytes;
  int device = 0, processors = 0, blocks = 0;
  check(cudaGetDevice(&device), "attend");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "attend");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "attend: shared memory");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, block_threads, shared), "attend");
  blocks = std::min(blocks * processors, most_blocks);

  call.scale *= log2_e;
  call.starts = static_cast<EntryStart *>(workspace);
  call.slots = reinterpret_cast<float *>(static_cast<std::byte *>(workspace) + (starts_bytes + 15) / 16 * 16);
  const int heads = call.query_heads / call.kv_heads;
  call.most_tiles = tiles_at_once(call.entries, call.kv_heads, most_tokens, heads);
  const dim3 segments(static_cast<unsigned>(call.most_tiles * call.kv_heads),
                      static_cast<unsigned>(call.entries));
  const std::size_t factors = static_cast<std::size_t>(blocks + 2) * column_count * sizeof(float);
  for (call.first_tile = 0; call.first_tile < column_tiles(most_tokens, heads);
       call.first_tile += call.most_tiles) {
    kernel<<<static_cast<unsigned>(blocks), block_threads, shared, stream>>>(call);
    check(cudaGetLastError(), "attend");
    merge<<<segments, head_dim * 2 * slot_groups<head_dim>, factors, stream>>>(call, blocks);
    check(cudaGetLastError(), "attend: merge");
  }
}

/// Attends for every entry of a batch, each of 1 to `most_tokens` tokens. `call`: all but what the launch
/// fills in (starts, slots, tiles); its scale is the attention scale. workspace: attend_workspace_bytes(),
/// aligned to 16 bytes.
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
