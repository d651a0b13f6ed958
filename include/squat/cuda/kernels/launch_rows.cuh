#pragma once

// Launches attention of the entries with many query tokens: for each chunk of pages that are unpacked, a
// grid that unpacks, one that attends and one that merges. The number of chunks follows from how many
// pages the batch may have: a chunk behind the last is a merge of all rows for nothing.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "squat/coding/coding.hpp"
#include "squat/core/config.hpp"
#include "squat/cuda/error.hpp"
#include "squat/cuda/kernels/attend_rows.cuh"
#include "squat/cuda/kernels/attend_warpgroups.cuh"
#include "squat/cuda/kernels/launch_behind.cuh"
#include "squat/cuda/kernels/merge_rows.cuh"
#include "squat/cuda/kernels/page_block.cuh"
#include "squat/cuda/kernels/score_rule.cuh"
#include "squat/cuda/kernels/unpack_pages.cuh"

namespace squat::cuda {

/// Query rows of an entry and KV head from which on it is one of many tokens. Measured (H100 and H200,
/// 32/8/128): unpacking pays from some 30 tokens on, of plain values from 5, whose decode steps take
/// twice as long; meeting exact pages with many rows from 3. far: see is_far().
inline int many_rows(bool packed, ValueCoding values, bool far) {
  if (!packed) return 12;
  if (values == ValueCoding::plain) return 20;
  return far ? 64 : 128;
}

/// Whether what is to be met is so much that 64 rows pay for a kernel of their own, whose blocks take 25
/// us to begin and half of decode's time for a page (H200: from 15,000 tokens of 8 KV heads on).
inline bool is_far(int kv_heads, int most_pages) {
  return std::int64_t{kv_heads} * most_pages >= 1024 && device_limits().by_warpgroup;
}

/// Query rows up to which values are met as codes, where there is a kernel for it. Measured (H200,
/// 32/8/128): that takes a seventh off 64 tokens, 7 % off 512 behind 4,096 and nothing behind 32,768.
inline constexpr int most_value_code_rows = 2048;

/// Query rows up to which a block of 64 has them all, where warpgroups multiply together: exact pages
/// are met by warps then, and codes are made numbers where they are met.
inline constexpr int most_small_rows = page_block_rows;

/// Whether keys or values alone are exact: decode.cuh has no kernel for such pages.
constexpr bool is_mixed(int key_bits, int value_bits) { return (key_bits == 16) != (value_bits == 16); }

/// Whether there are kernels of many rows: a warp's sums of larger heads do not fit its registers.
constexpr bool has_row_kernels(int head_dim) { return head_dim <= 256; }

/// many_rows() in tokens, or `asked` where that is not 0; 1 where pages are mixed. More than there are
/// where there are no kernels for it.
inline int many_tokens(int head_dim, int heads_per_kv_head, int key_bits, int value_bits,
                       ValueCoding values, bool far, int asked) {
  if (!has_row_kernels(head_dim)) return std::numeric_limits<int>::max();
  if (is_mixed(key_bits, value_bits)) return 1;
  if (asked != 0) return asked;
  const int rows = many_rows(key_bits < 16, values, far);
  return std::max(2, (rows + heads_per_kv_head - 1) / heads_per_kv_head);
}

/// Memory for unpacked pages: 32,768 tokens of 8 KV heads of 128 channels. Half as much takes 6 % longer
/// for 512 query tokens over them.
inline constexpr std::size_t most_unpacked_bytes = std::size_t{128} << 20;

/// Whether warpgroups meet such heads and pages (attend_warpgroups.cuh): of larger heads their sums do
/// not fit the registers, and a unit is a page.
constexpr bool has_warpgroups(int head_dim, int group) {
  return (head_dim == 64 || head_dim == 128) && group == 128;
}

/// Segments that a launch takes, so that the workspace stays bounded, and blocks.
inline constexpr int most_row_segments = 512;
inline constexpr int most_row_blocks = 480;

/// Tiles of 16 rows that a warp has.
constexpr int row_tiles_of(int head_dim, int rows) {
  return head_dim > 128 || rows <= 16 * row_warps ? 1 : 2;
}

/// The workspace's parts, in bytes.
struct RowWorkspace {
  int tile_rows, tiles;             // row tiles of an entry that a launch takes
  std::size_t sums, unpacked, end;  // behind the slots

  /// number_bytes: of a channel of a token, key and value, while pages are unpacked; 0: they are not.
  RowWorkspace(int head_dim, int entries, int heads_per_kv_head, int kv_heads, int most_tokens,
               int most_pages, int row_count, int number_bytes)
      : tile_rows(row_count) {
    const int rows = most_tokens * heads_per_kv_head;
    tiles = std::clamp(most_row_segments / std::max(1, entries * kv_heads), 1,
                       (rows + tile_rows - 1) / tile_rows);
    const auto segments = static_cast<std::size_t>(entries) * static_cast<std::size_t>(kv_heads * tiles);
    sums = 2 * (segments + most_row_blocks) * row_slot_bytes(head_dim, tile_rows);
    unpacked = sums + segments * row_sum_floats(head_dim, tile_rows) * sizeof(float);
    unpacked = (unpacked + 127) / 128 * 128;
    const std::size_t page = static_cast<std::size_t>(kv_heads * head_dim * number_bytes) * 128;
    const std::size_t all = page * static_cast<std::size_t>(most_pages);
    end = unpacked + (page > 0 ? std::min(all, std::max(page, most_unpacked_bytes)) : 0);
  }
};

/// The largest workspace that a launch takes, whichever kernels it chooses.
inline std::size_t row_workspace_bytes(int head_dim, int entries, int heads_per_kv_head, int kv_heads,
                                       int most_tokens, int most_pages, bool packed) {
  std::size_t bytes = 0;
  for (const int rows : {64, 128}) {
    const RowWorkspace parts(head_dim, entries, heads_per_kv_head, kv_heads, most_tokens, most_pages,
                             rows, packed ? 4 : 0);
    bytes = std::max(bytes, parts.end);
  }
  return bytes;
}

/// The kernel that does a block's work on segments.
template <class Work, class S>
constexpr auto row_kernel() {
  if constexpr (requires { typename Work::Consumer; }) {
    return attend_warpgroups<Work, S>;
  } else {
    return attend_rows<Work, S>;
  }
}

/// Shared memory of a block of unpack_pages.
template <class Layout, ValueCoding Values, class T>
constexpr std::size_t unpack_shared(UnpackedParts unpacked, std::size_t starts_bytes) {
  return UnpackMatrices<Layout, false>::bytes + 2 * unpack_stage_bytes<Layout, Values>(unpacked) +
         starts_bytes;
}

/// Work: of a block, on what `Unpacked` says.
template <class Layout, ValueCoding Values, class Work, UnpackedParts Unpacked, class T, class S>
void launch_attend_row_tiles(RowCall<S> rows, int most_tokens, const RowWorkspace &parts,
                             cudaStream_t stream) {
  constexpr int head_dim = Layout::HeadDim;
  constexpr bool unpacks = Unpacked != UnpackedParts::none;
  constexpr bool rotated = Layout::ValueBits < 16 && Values == ValueCoding::symmetric;
  AttendCall<S> &call = rows.call;
  rows.values_are_rotated = rotated ? 1 : 0;
  const std::size_t starts_bytes = (static_cast<std::size_t>(call.entries) + 1) * sizeof(RowStart);
  const auto attend = row_kernel<Work, S>();
  const auto merge = merge_rows<head_dim, rotated, S>;
  const std::size_t shared = Work::shared_bytes() + starts_bytes;
  const DeviceLimits &limits = device_limits();
  const int processors = limits.processors;
  // The first kernel comes behind all before it, the others begin while the one before them ends.
  bool overlaps = false;
  const auto launch = [&](auto kernel, int grid, int threads, std::size_t bytes, auto... arguments) {
    launch_behind("attend", kernel, static_cast<unsigned>(grid), threads, bytes, stream, overlaps,
                  arguments...);
    overlaps = launches_overlap();
  };
  thread_local KernelFit fit;
  if (!fit.holds(limits, shared)) {
    allow_shared_bytes<row_kernel<Work, S>()>(shared);
    allow_shared_bytes<merge_rows<head_dim, rotated, S>>(starts_bytes);
    if constexpr (unpacks) {
      allow_shared_bytes<unpack_pages<Layout, Values, Unpacked, T, S>>(
          unpack_shared<Layout, Values, T>(Unpacked, starts_bytes));
    }
    fit.find(attend, Work::threads, shared, limits);
  }
  const int blocks = std::min(fit.blocks, most_row_blocks);
  const int row_count = most_tokens * call.heads_per_kv_head;
  const int tiles = (row_count + Work::rows - 1) / Work::rows;
  const int merged = call.entries * call.kv_heads * parts.tiles * Work::rows;
  const MergeShape merging = MergeShape::of(merged, processors);
  call.most_tiles = parts.tiles;
  for (call.first_tile = 0; call.first_tile < tiles; call.first_tile += call.most_tiles) {
    rows.first_page = 0;
    do {
      rows.last_chunk = call.most_pages - rows.first_page <= rows.pages ? 1 : 0;
      if constexpr (unpacks) {
        using Unpack = UnpackWarp<Layout, Values, T>;
        const auto unpack = unpack_pages<Layout, Values, Unpacked, T, S>;
        const std::size_t bytes = unpack_shared<Layout, Values, T>(Unpacked, starts_bytes);
        const int of_a_head = std::max(1, Unpack::blocks * processors / call.kv_heads);
        const int most = std::max(1, std::min(of_a_head, std::min(rows.pages, call.most_pages)));
        launch(unpack, most * call.kv_heads, Unpack::threads, bytes, rows);
      }
      launch(attend, blocks, Work::threads, shared, rows);
      launch(merge, (merged + merging.block_rows() - 1) / merging.block_rows(), merge_threads,
             starts_bytes, rows, blocks, Work::rows, Work::step_tiles, Work::page_steps, merging);
      rows.first_page += rows.pages;
    } while (rows.last_chunk == 0);
  }
}

/// Whether something becomes of scores but their softmax.
inline bool is_ruled(const ScoreRule &rule) { return rule.bends() || rule.window > 0; }

/// Whether a call's codes may be made numbers where they are met.
template <class Layout, ValueCoding Values, class S>
bool may_make_keys(const AttendCall<S> &call) {
  return meets_codes<Layout, Values>() && call.turns_in_place && !is_ruled(call.rule) &&
         device_limits().by_warpgroup;
}

/// Attends for the entries with many tokens. call: its scale times log2 e.
template <class Layout, ValueCoding Values, class T, class S>
void launch_attend_rows(const AttendCall<S> &call, int most_tokens, void *workspace,
                        cudaStream_t stream) {
  constexpr int head_dim = Layout::HeadDim;
  constexpr bool packed = Layout::KeyBits < 16 || Layout::ValueBits < 16;
  constexpr UnpackedParts numbers = packed ? UnpackedParts::all : UnpackedParts::none;
  const int row_count = most_tokens * call.heads_per_kv_head;
  const bool ruled = is_ruled(call.rule);
  const auto launch = [&]<class Work, UnpackedParts Unpacked>() {
    constexpr int number_bytes = Unpacked == UnpackedParts::all    ? 4
                                 : Unpacked == UnpackedParts::keys ? 2
                                                                   : 0;
    const RowWorkspace parts(head_dim, call.entries, call.heads_per_kv_head, call.kv_heads, most_tokens,
                             call.most_pages, Work::rows, number_bytes);
    auto *bytes = static_cast<std::uint8_t *>(workspace);
    RowCall<S> rows{};
    rows.call = call;
    rows.slots = bytes;
    rows.sums = reinterpret_cast<float *>(bytes + parts.sums);
    rows.unpacked = bytes + parts.unpacked;
    rows.pages_are_exact = packed ? 0 : 1;
    rows.pages = std::numeric_limits<std::int32_t>::max() / 2;
    if constexpr (number_bytes > 0) {
      constexpr std::size_t head = unpacked_head_bytes<head_dim, Layout::Group>(Unpacked);
      const std::size_t page = static_cast<std::size_t>(call.kv_heads) * head;
      rows.pages = std::max(1, static_cast<std::int32_t>((parts.end - parts.unpacked) / page));
    }
    launch_attend_row_tiles<Layout, Values, Work, Unpacked, T>(rows, most_tokens, parts, stream);
  };
  if constexpr (has_warpgroups(head_dim, Layout::Group)) {
    if (row_count > most_small_rows && device_limits().by_warpgroup) {
      using Free = Warpgroups<head_dim, Layout::Group, false, T, S>;
      using Ruled = Warpgroups<head_dim, Layout::Group, true, T, S>;
      return ruled ? launch.template operator()<Ruled, numbers>()
                   : launch.template operator()<Free, numbers>();
    }
  }
  if constexpr (meets_codes<Layout, Values>()) {
    if (row_count <= most_small_rows && may_make_keys<Layout, Values>(call))
      return launch.template operator()<PageBlock<Layout, true, T, S>, UnpackedParts::none>();
    if (!ruled && row_count <= most_value_code_rows)
      return launch.template operator()<PageBlock<Layout, false, T, S>, UnpackedParts::keys>();
  }
  const auto launch_rows = [&]<bool Ruled>() {
    const auto by_tiles = [&]<int RowTiles>() {
      launch.template operator()<RowBlock<head_dim, Layout::Group, RowTiles, Ruled, T, S>, numbers>();
    };
    if constexpr (head_dim <= 128) {
      if (row_tiles_of(head_dim, row_count) == 2) return by_tiles.template operator()<2>();
    }
    by_tiles.template operator()<1>();
  };
  if (ruled) {
    launch_rows.template operator()<true>();
  } else {
    launch_rows.template operator()<false>();
  }
}

}  // namespace squat::cuda
