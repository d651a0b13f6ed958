#pragma once

// Launches attention: a grid that just fills the device.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "squat/coding/coding.hpp"
#include "squat/core/config.hpp"
#include "squat/cuda/error.hpp"
#include "squat/cuda/kernels/attend.cuh"
#include "squat/cuda/kernels/launch_behind.cuh"
#include "squat/cuda/kernels/launch_rows.cuh"
#include "squat/cuda/kernels/merge.cuh"
#include "squat/cuda/kernels/query_sets.cuh"

namespace squat::cuda {

/// Column tiles an attention of many tokens takes at a time, so that its workspace stays bounded.
inline constexpr int most_segments = 8192;
inline constexpr int most_sets = 32768;

/// Blocks of the attention's grid at most, on any device: the workspace has room for their warps' slots.
inline constexpr int most_blocks = 480;

/// Column tiles of `tokens` tokens of a sequence.
constexpr int column_tiles(int tokens, int heads_per_kv_head) {
  return (tokens * heads_per_kv_head + column_count - 1) / column_count;
}

/// Column tiles of an entry a launch takes. table_pages: entries of the batch's page tables together.
inline int tiles_at_once(int entries, int query_heads, int kv_heads, int most_tokens, int table_pages) {
  const int by_segments = most_segments / std::max(1, entries * kv_heads);
  const int by_sets = most_sets / std::max(1, table_pages * kv_heads);
  return std::clamp(std::min(by_segments, by_sets), 1,
                    column_tiles(most_tokens, query_heads / kv_heads));
}

/// The parts of the workspace behind the slots it begins with, in bytes.
struct AttendWorkspace {
  std::size_t sets, end;

  template <class S>
  AttendWorkspace(const AttendCall<S> &call, int head_dim, int most_tokens)
      : AttendWorkspace(head_dim, call.entries, call.query_heads, call.kv_heads, most_tokens,
                        call.table_pages) {}

  AttendWorkspace(int head_dim, int entries, int query_heads, int kv_heads, int most_tokens,
                  int table_pages) {
    const auto tiles = static_cast<std::size_t>(
                           tiles_at_once(entries, query_heads, kv_heads, most_tokens, table_pages)) *
                       static_cast<std::size_t>(kv_heads);
    const auto d = static_cast<std::size_t>(head_dim);
    const std::size_t slot_bytes = (d * 8 + 2 * column_count) * sizeof(float);
    const std::size_t set_bytes = 2 * d * warp_lanes / 2 + 2 * column_count * sizeof(float) +
                                  most_mode_tiles * warp_lanes * sizeof(uint2);
    sets = 2 * (static_cast<std::size_t>(entries) * tiles + most_blocks * block_warps) * slot_bytes;
    end = sets + static_cast<std::size_t>(table_pages) * tiles * set_bytes;
  }
};

/// Tokens of the entries that attend.cuh attends for, where an entry has at most so many.
inline int few_tokens(int many_tokens, int most_tokens) {
  return std::min(most_tokens, many_tokens - 1);
}

/// Bytes of the workspace of an attention of `entries` sequences of at most `most_tokens` tokens each.
/// table_pages: entries of the page tables of these sequences together, used or not. packed: pages are
/// of less than 16 bits. many: AttendCall::many_tokens.
inline std::size_t attend_workspace_bytes(int head_dim, int entries, int query_heads, int kv_heads,
                                          int most_tokens, int table_pages, bool packed, int many = 0) {
  if (many == 0) many = many_tokens(query_heads / kv_heads, packed);
  const int few = few_tokens(many, most_tokens);
  const std::size_t bytes =
      AttendWorkspace(head_dim, entries, query_heads, kv_heads, few, table_pages).end;
  if (few == most_tokens) return bytes;
  return std::max(
      bytes,
      RowWorkspace(head_dim, entries, query_heads, kv_heads, most_tokens, table_pages, packed).end);
}

template <class Layout, ValueCoding Values, class T, class S>
void launch_attend_coded(AttendCall<S> call, int most_tokens, void *workspace, cudaStream_t stream) {
  using Warp = SegmentWarp<Layout, Values, T, S>;
  const auto kernel = attend_kernel<Layout, Values, T, S>;
  const std::size_t starts_bytes = (static_cast<std::size_t>(call.entries) + 1) * sizeof(EntryStart);
  const std::size_t shared = warps_bytes<Warp>() + starts_bytes;
  constexpr int head_dim = Layout::HeadDim;
  constexpr bool rotated = Layout::ValueBits < 16 && Values == ValueCoding::symmetric;
  const auto make_sets = make_query_sets<head_dim, S>;
  const auto merge = merge_slots<head_dim, rotated, S>;
  const std::size_t sets_shared = set_kernel_bytes<head_dim>() + starts_bytes;
  const DeviceLimits &limits = device_limits();
  thread_local KernelFit fit;
  if (!fit.holds(limits, shared)) {
    static SharedMemoryLimit<decltype(kernel)> kernel_limit;
    static SharedMemoryLimit<decltype(merge)> merge_limit;
    static SharedMemoryLimit<decltype(make_sets)> sets_limit;
    kernel_limit.raise(kernel, shared);
    merge_limit.raise(merge, starts_bytes);
    if constexpr (Layout::KeyBits < 16) sets_limit.raise(make_sets, sets_shared);
    fit.find(kernel, block_threads, shared, limits);
  }
  const int processors = limits.processors, blocks = std::min(fit.blocks, most_blocks);

  static_assert(sizeof(QuerySet<head_dim>) == 2 * head_dim * 16 + 64 + most_mode_tiles * 256);
  static_assert(SlotLayout<head_dim>::floats == head_dim * 8 + 16);
  const AttendWorkspace parts(call, head_dim, most_tokens);
  auto *bytes = static_cast<std::byte *>(workspace);
  call.most_tiles =
      tiles_at_once(call.entries, call.query_heads, call.kv_heads, most_tokens, call.table_pages);
  call.slots = reinterpret_cast<float *>(bytes);
  call.sets = bytes + parts.sets;
  const int tiles = column_tiles(most_tokens, call.query_heads / call.kv_heads);
  const bool overlaps = limits.major >= 9;
  const int columns = std::min(column_count, most_tokens * (call.query_heads / call.kv_heads));
  const int rows = call.entries * call.most_tiles * call.kv_heads * columns;
  const int team = rows <= 4 * processors ? merge_warps : 1, teams = merge_warps / team;
  for (call.first_tile = 0; call.first_tile < tiles; call.first_tile += call.most_tiles) {
    if constexpr (Layout::KeyBits < 16) {
      const int of_a_head = std::max(1, 2 * processors / call.kv_heads);
      make_sets<<<static_cast<unsigned>(of_a_head * call.kv_heads), set_threads, sets_shared, stream>>>(
          call);
      check(cudaGetLastError(), "attend: queries");
    }
    launch_behind(kernel, blocks, block_threads, shared, stream, overlaps && Layout::KeyBits < 16, call);
    launch_behind(merge, (rows + teams - 1) / teams, merge_threads, starts_bytes, stream, overlaps, call,
                  blocks * block_warps, Warp::exact_tiles, columns, team);
  }
}

/// Entries with many tokens are left to attend_rows.cuh, the others attended for here.
template <class Layout, ValueCoding Values, class T, class S>
void launch_attend_valued(AttendCall<S> call, int most_tokens, void *workspace, cudaStream_t stream) {
  call.scale *= log2_e;
  constexpr bool packed = Layout::KeyBits < 16 || Layout::ValueBits < 16;
  if (call.many_tokens == 0) call.many_tokens = many_tokens(call.query_heads / call.kv_heads, packed);
  const int few = few_tokens(call.many_tokens, most_tokens);
  if (few == most_tokens || call.entries > 1) {
    launch_attend_coded<Layout, Values, T>(call, few, workspace, stream);
  }
  if (few < most_tokens) {
    launch_attend_rows<Layout, Values, T>(call, most_tokens, workspace, stream);
  }
}

/// Attends for every entry of a batch, each of 1 to `most_tokens` tokens, the longest of so many.
/// `call`: all but what the launch fills in (slots, sets, tiles); its scale is the attention scale,
/// many_tokens 0 for the measured border. workspace: attend_workspace_bytes(), aligned to 16 bytes.
template <class Layout, class T, class S>
void launch_attend(const AttendCall<S> &call, ValueCoding values, int most_tokens, void *workspace,
                   cudaStream_t stream) {
  if (call.entries == 0) return;
  if (Layout::ValueBits < 16 && values == ValueCoding::plain) {
    launch_attend_valued<Layout, ValueCoding::plain, T>(call, most_tokens, workspace, stream);
  } else {
    launch_attend_valued<Layout, ValueCoding::symmetric, T>(call, most_tokens, workspace, stream);
  }
}

}  // namespace squat::cuda
