#pragma once

// Launches attention: of few tokens by decode.cuh, of many by attend_rows.cuh.

#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "squat/coding/coding.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/cuda/error.hpp"
#include "squat/cuda/kernels/decode.cuh"
#include "squat/cuda/kernels/launch_behind.cuh"
#include "squat/cuda/kernels/launch_rows.cuh"
#include "squat/cuda/kernels/score_rule.cuh"

namespace squat::cuda {

/// Counters of segments that a workspace begins with. They are 0 between launches.
inline constexpr int most_counters = 65536;
inline constexpr std::size_t counter_bytes = most_counters * sizeof(std::int32_t);

/// Blocks of a decode launch at most, on any device: the workspace has room for what they leave.
inline constexpr int most_blocks = 256;

/// Teams of a block that share pages, for so many query rows.
constexpr int teams_for(int rows) { return rows <= team_rows ? 1 : rows <= 2 * team_rows ? 2 : 4; }

/// What a launch of decode takes at a time.
struct DecodeShare {
  int teams, tiles, entries;

  DecodeShare(int all_entries, int heads_per_kv_head, int kv_heads, int most_tokens) {
    const int rows = most_tokens * heads_per_kv_head;
    teams = teams_for(rows);
    const int all_tiles = (rows + teams * team_rows - 1) / (teams * team_rows);
    const int counters = most_counters / (kv_heads * teams);
    entries = std::min({all_entries, most_entries, counters});
    tiles = std::clamp(counters / entries, 1, std::min(all_tiles, 64));
  }
};

inline std::size_t decode_workspace_bytes(int head_dim, int entries, int heads_per_kv_head, int kv_heads,
                                          int most_tokens) {
  const DecodeShare share(entries, heads_per_kv_head, kv_heads, most_tokens);
  const std::int64_t segments = std::int64_t{share.entries} * kv_heads * share.tiles;
  const std::int64_t pieces =
      most_pieces(segments, share.entries, kv_heads, most_blocks, 4 / share.teams);
  const auto slot = static_cast<std::size_t>(team_rows * found_row_floats(head_dim));
  return counter_bytes + static_cast<std::size_t>(pieces * share.teams) * slot * sizeof(float);
}

/// Tokens of the entries that decode.cuh attends for, where an entry has at most so many.
inline int few_tokens(int many_tokens, int most_tokens) {
  return std::min(most_tokens, many_tokens - 1);
}

/// Bytes of the workspace of an attention of `entries` sequences of at most `most_tokens` tokens each;
/// the first counter_bytes of it are 0 before the first launch. most_pages: that these sequences may
/// have together. asked: AttendCall::many_tokens.
inline std::size_t attend_workspace_bytes(int head_dim, int entries, int query_heads, int kv_heads,
                                          int most_tokens, int most_pages, int key_bits, int value_bits,
                                          ValueCoding values, int asked = 0) {
  const bool packed = key_bits < 16 || value_bits < 16;
  const int heads = query_heads / kv_heads;
  // Whichever border the launch takes.
  const bool far = is_far(kv_heads, most_pages);
  const int least = many_tokens(head_dim, heads, key_bits, value_bits, values, far, asked);
  const int many = many_tokens(head_dim, heads, key_bits, value_bits, values, false, asked);
  std::size_t bytes = decode_workspace_bytes(head_dim, entries, heads, kv_heads,
                                             std::max(1, few_tokens(many, most_tokens)));
  if (most_tokens >= least) {
    bytes = std::max(bytes, counter_bytes + row_workspace_bytes(head_dim, entries, heads, kv_heads,
                                                                most_tokens, most_pages, packed));
  }
  return bytes;
}

/// How a block uses its shared memory: as many teams as fit beside tables, then as many slots; none
/// where there is no room.
template <class Memory>
std::optional<DecodePlan> find_decode_plan(int teams_of_group, int entries, int room) {
  const auto fits = [&](const DecodePlan &plan) {
    return typename Memory::Parts(plan, entries).bytes <= room;
  };
  DecodePlan plan{.teams = Memory::most_teams / teams_of_group * teams_of_group,
                  .group_bits = std::countr_zero(static_cast<unsigned>(teams_of_group)),
                  .slots = 0,
                  .row_bytes = 0,
                  // Measured: 64 exact rows take as long as two pages of codes, half as long as a page
                  // of exact rows.
                  .exact_bits = Memory::exact ? 0 : 1};
  if constexpr (Memory::exact) {
    if (fits(plan)) return plan;
  } else {
    // One slot is enough, for other groups compute while it comes: teams are worth more.
    const int most = plan.teams;
    for (const int row_bytes : {Memory::wanted_row_bytes, 0}) {
      plan.row_bytes = row_bytes;
      for (plan.teams = most; plan.teams > 0; plan.teams -= teams_of_group) {
        for (plan.slots = std::min(8, 3 * teams_of_group); plan.slots > 0; --plan.slots) {
          if (fits(plan)) return plan;
        }
      }
    }
  }
  return {};
}

/// The same with groups of `teams` teams, or of fewer where these do not fit. Throws Error where no team
/// does.
template <class Memory>
DecodePlan decode_plan(int teams, int entries, int room) {
  for (; teams > 0; teams /= 2) {
    if (const auto plan = find_decode_plan<Memory>(teams, entries, room)) return *plan;
  }
  throw Error(
      "squat: head_dim or bits are too large for this device: attention needs more shared memory than "
      "its " +
      std::to_string(room) + " bytes a block");
}

template <class Layout, ValueCoding Values, class T, class S>
void launch_decode(AttendCall<S> call, int most_tokens, void *workspace, cudaStream_t stream) {
  using Memory = DecodeMemory<Layout, Values>;
  const auto kernel = decode<Layout, Values, T, S>;
  const DeviceLimits &limits = device_limits();
  DecodeShare share(call.entries, call.heads_per_kv_head, call.kv_heads, most_tokens);
  share.teams = std::min(share.teams, Memory::most_teams / 2 * 2);
  const DecodePlan plan = decode_plan<Memory>(share.teams, share.entries, limits.shared_bytes);
  const auto shared = static_cast<std::size_t>(typename Memory::Parts(plan, share.entries).bytes);
  thread_local KernelFit fit;
  if (!fit.holds(limits, shared)) {
    allow_shared_bytes<decode<Layout, Values, T, S>>(shared);
    fit = {limits.device, shared, limits.processors};
  }
  auto *bytes = static_cast<std::byte *>(workspace);
  call.counters = reinterpret_cast<std::int32_t *>(bytes);
  call.slots = reinterpret_cast<float *>(bytes + counter_bytes);
  call.most_tiles = share.tiles;
  const int tiles = plan.tiles(most_tokens * call.heads_per_kv_head);
  const int entries = call.entries, blocks = std::min(limits.processors, most_blocks);
  for (int first = 0; first < entries; first += share.entries) {
    call.entries = std::min(share.entries, entries - first);
    for (call.first_tile = 0; call.first_tile < tiles; call.first_tile += call.most_tiles) {
      // It may begin while the kernel before it ends, and waits for it before it reads anything.
      launch_behind("attend", kernel, static_cast<unsigned>(blocks), plan.teams * team_threads, shared,
                    stream, launches_overlap(), call, plan);
    }
    call.batch += call.entries;
  }
}

/// Entries with many tokens are left to attend_rows.cuh, the others attended for here.
template <class Layout, ValueCoding Values, class T, class S>
void launch_attend_valued(AttendCall<S> call, int most_tokens, void *workspace, cudaStream_t stream) {
  call.scale *= log2_e;
  const bool far = is_far(call.kv_heads, call.most_pages) && may_make_keys<Layout, Values>(call);
  call.many_tokens = many_tokens(Layout::HeadDim, call.heads_per_kv_head, Layout::KeyBits,
                                 Layout::ValueBits, Values, far, call.many_tokens);
  if constexpr (!is_mixed(Layout::KeyBits, Layout::ValueBits)) {
    const int few = few_tokens(call.many_tokens, most_tokens);
    if (few == most_tokens || call.entries > 1) {
      launch_decode<Layout, Values, T>(call, few, workspace, stream);
    }
  }
  if constexpr (has_row_kernels(Layout::HeadDim)) {
    if (call.many_tokens > most_tokens) return;
    launch_attend_rows<Layout, Values, T>(call, most_tokens,
                                          static_cast<std::byte *>(workspace) + counter_bytes, stream);
  }
}

/// Attends for every entry of a batch, each of 1 to `most_tokens` tokens, the longest of so many.
/// `call`: all but what the launch fills in (slots, counters, tiles); its scale is the attention scale,
/// many_tokens 0 for the measured border. workspace: attend_workspace_bytes(), aligned to 16 bytes.
template <class Layout, class T, class S>
void launch_attend(const AttendCall<S> &call, ValueCoding values, int most_tokens, void *workspace,
                   cudaStream_t stream) {
  if (call.entries == 0) return;
  if constexpr (Layout::has_plain_values) {
    if (Layout::ValueBits < 16 && values == ValueCoding::plain)
      return launch_attend_valued<Layout, ValueCoding::plain, T>(call, most_tokens, workspace, stream);
  }
  launch_attend_valued<Layout, ValueCoding::symmetric, T>(call, most_tokens, workspace, stream);
}

}  // namespace squat::cuda
