#pragma once

// Attention of a team over rows that are not packed: sinks and tail, and pages where these are exact.
// Tiles go from the device's memory to registers: while a warp meets a block of 16 tokens, its values
// and the keys of the next are on their way.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "squat/cuda/kernels/decode_team.cuh"
#include "squat/cuda/kernels/row_sums.cuh"
#include "squat/cuda/kernels/shared_memory.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/byte_block.cuh"
#include "squat/cuda/page/exact_tiles.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/state/device_state.cuh"
#include "squat/cuda/state/exact_slots.cuh"

namespace squat::cuda {

/// What a warp's exact rows come to. A lane's row is t: columns 2t and 2t + 1 of the scores are alike,
/// those of the values the sums and nothing.
template <int HeadDim>
struct ExactSums {
  static constexpr int steps = HeadDim / 16;

  float o[steps][4];
  float reference, weight;

  __device__ void clear() {
#pragma unroll
    for (int s = 0; s < steps; ++s) o[s][0] = o[s][1] = o[s][2] = o[s][3] = 0;
    reference = no_reference;
    weight = 0;
  }
  /// Makes the reference such that 2^(x - reference) is at most 2^8.
  __device__ void see(const float (&x)[2]) {
    constexpr float slack = 8;
    const float most = fmaxf(x[0], x[1]);
    if (!__any_sync(0xffffffffu, most > reference + slack)) return;
    const float to = fmaxf(reference, largest_row(most)), factor = power_of_two(reference - to);
    reference = to;
    weight *= factor;
    scale(factor);
  }
  __device__ void scale(float factor) {
#pragma unroll
    for (int s = 0; s < steps; ++s) o[s][0] *= factor, o[s][2] *= factor;
  }
  /// The B of weights 2^(x - reference).
  __device__ Word column(float x) {
    const __half p = __float2half_rn(power_of_two(x - reference));
    weight += __half2float(p);
    return transpose(as_word(__halves2half2(p, __ushort_as_half(0))));
  }
};

/// T: what exact rows are.
template <class Layout, ValueCoding Values, class T, class S>
class ExactAttention : public DecodeTeam<Layout, Values, S> {
 public:
  using Team = DecodeTeam<Layout, Values, S>;
  using Team::Team;
  using typename Team::Memory, Team::task, Team::sync_team, Team::add_up, Team::limit, Team::first_seen,
      Team::thread_of_team;
  static constexpr int HeadDim = Layout::HeadDim, steps = HeadDim / 16;
  static constexpr bool exact = Memory::exact;

  /// Asks for the rows of the piece, which come while its pages are met.
  __device__ void prefetch_rows() const {
    const int first = task().piece.exact_first, last = task().piece.exact_last;
    const int exact_last = has_bytes() ? sink_blocks() : last;
    for (int i = first + thread_of_team(); i < last; i += team_threads) {
      if (i < exact_last) {
        prefetch(find_block(i).keys, static_cast<int>(ExactSlots::block_bytes<HeadDim>()));
      } else {
        prefetch(byte_block(i), static_cast<int>(ByteSlots::block_bytes<HeadDim>()));
      }
    }
  }

  /// The blocks of rows of the piece, and then those of its pages, where these are exact.
  __device__ void attend() const {
    const int first = task().piece.exact_first, last = task().piece.exact_last;
    const int exact_last = has_bytes() ? min(max(sink_blocks(), first), last) : last;
    if (exact || first < exact_last) attend_exact(first, exact_last);
    if constexpr (!exact) {
      if (exact_last < last) attend_bytes(exact_last, last);
    }
  }

 private:
  using Team::memory_, Team::warp_, Team::call_;

  /// Whether what is behind the sinks is a tail of bytes.
  __device__ bool has_bytes() const {
    return task().state->byte_tail != 0 && task().unpacked == nullptr;
  }
  __device__ int sink_blocks() const { return (task().state->sinks + 15) / 16; }

  /// Whether row t sees a position.
  __device__ bool sees(int position) const { return position < limit() && position >= first_seen(); }
  /// The score of row t at a position becomes what the rule makes of it.
  __device__ void bend(float &score, int position) const {
    if (call_.rule.bends()) score = call_.rule.bent(score, this->slope(), limit() - 1 - position);
  }

  /// The blocks [first, last), and pages.
  __device__ void attend_exact(int first, int last) const {
    const typename Team::Facing facing = this->facing();
    facing.put_row();
    sync_team();
    ExactSums<HeadDim> sums;
    sums.clear();
    int i = first + warp_;
    if (i < last) {
      ExactBlock block = find_block(i);
      Tiles keys(block.keys);
#pragma unroll 1
      for (; i < last; i += team_warps) {
        const bool more = i + team_warps < last;
        const ExactBlock next = more ? find_block(i + team_warps) : block;
        add_block(block, keys, more ? next.keys : nullptr, sums);
        block = next;
      }
    }
    if constexpr (exact) {
      long long base = 0;
      const int pages = task().page_count;
      const PageEntry *entries = task().pages;
      const auto block_of = [&](const PageEntry &page, int tile) -> ExactBlock {
        const std::uint8_t *tiles =
            page.data + static_cast<std::size_t>(this->stretch().head) * Layout::head_bytes(Values) +
            tile * HeadDim * 32;
        return {reinterpret_cast<const ExactTile<T> *>(tiles),
                reinterpret_cast<const ExactTile<T> *>(tiles + Layout::value_codes),
                page.before - page.first + 16 * tile, page.before, page.before + page.tokens};
      };
      // A warp has every fourth tile; pages of two have none for half of the warps.
      constexpr int tiles = Layout::token_tiles;
      if (pages > 0) {
        PageEntry page = entries[0];
        Tiles keys(block_of(page, warp_ % tiles).keys);
#pragma unroll 1
        for (int p = 0; p < pages; ++p) {
          const PageEntry next = entries[min(p + 1, pages - 1)];
          if (page.base != base) {
            base = page.base;
            sync_team();
            facing.turn(base);
            sync_team();
          }
#pragma unroll 1
          for (int tile = warp_; tile < tiles; tile += team_warps) {
            const bool more = tile + team_warps < tiles;
            const ExactTile<T> *next_keys = more            ? block_of(page, tile + team_warps).keys
                                            : p + 1 < pages ? block_of(next, warp_).keys
                                                            : nullptr;
            add_block(block_of(page, tile), keys, next_keys, sums);
          }
          page = next;
        }
      }
    }
    this->template add_up<ChannelOrder>(false, sums.reference, sums.weight,
                                        [&](int j, int half) { return sums.o[j][2 * half]; });
  }

  /// The blocks [first, last) of a tail of bytes. Values are summed in steps of `unit`, the largest so
  /// far, so that float16 holds a weight times its step over it.
  __device__ void attend_bytes(int first, int last) const {
    this->facing().put_rotated_row();
    sync_team();
    ExactSums<HeadDim> sums;
    sums.clear();
    float unit = 1e-20f;
#pragma unroll 1
    for (int i = first + warp_; i < last; i += team_warps) add_byte_block(i, sums, unit);
    this->template add_up<ChannelOrder>(true, sums.reference, sums.weight,
                                        [&](int j, int half) { return sums.o[j][2 * half] * unit; });
  }

  /// Block `index` of the rows, of a tail of bytes.
  __device__ const std::uint8_t *byte_block(int index) const {
    return tail_slots<HeadDim, ByteSlots>(*task().state, call_.kv_heads)
        .template block<HeadDim>(this->stretch().head, 16 * (index - sink_blocks()));
  }

  __device__ void add_byte_block(int index, ExactSums<HeadDim> &sums, float &unit) const {
    using Block = ByteBlock<HeadDim>;
    const LayerState &state = *task().state;
    const int lane = opaque(lane_index()), g = lane >> 2, token = 16 * (index - sink_blocks());
    const std::uint8_t *block = byte_block(index);
    const auto *tiles = reinterpret_cast<const uint2 *>(block) + lane;
    const auto read = [&](uint2(&words)[steps], int part) {
#pragma unroll
      for (int s = 0; s < steps; ++s) words[s] = read_once(tiles + (part * steps + s) * warp_lanes);
    };
    // Values are on their way with the keys where registers hold both.
    constexpr bool early = HeadDim <= 256;
    uint2 keys[steps], values[steps];
    read(keys, 0);
    float key_steps[2], value_steps[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const auto step = [&](int at) {
        return __half2float(*reinterpret_cast<const __half *>(block + at));
      };
      key_steps[j] = step(Block::key_step(g + 8 * j));
      value_steps[j] = step(Block::value_step(g + 8 * j));
    }
    if (early) read(values, 1);
    float c[4] = {};
    const int turned = memory_ + Memory::turned + lane * 8;
#pragma unroll
    for (int s = 0; s < steps; ++s) {
      const uint4 a = byte_halves(keys[s]);
      const uint2 b = shared_at<const uint2>(turned + s * Memory::turned_step);
      multiply_add(c, a.x, a.y, a.z, a.w, b.x, b.y);
    }
    if (!early) read(values, 1);
    float x[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = token + g + 8 * j, at = state.sinks + state.paged_tokens + row;
      x[j] = c[2 * j] * (this->norm() * key_steps[j]);
      bend(x[j], at);
      if (row < state.tail && sees(at)) continue;
      x[j] = -INFINITY;
      value_steps[j] = 0;  // of a row that never was, or of another: no number even
    }
    sums.see(x);
    const float most_step = largest_row(fmaxf(value_steps[0], value_steps[1]));
    if (most_step > unit) {
      sums.scale(unit / most_step);
      unit = most_step;
    }
    const float per_unit = 1 / unit;
    Word columns[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float p = power_of_two(x[j] - sums.reference);
      sums.weight += p;
      columns[j] = transpose(halves(p * (value_steps[j] * per_unit), 0));
    }
#pragma unroll
    for (int s = 0; s < steps; ++s) {
      const uint4 a = byte_halves(values[s]);
      multiply_add(sums.o[s], a.x, a.y, a.z, a.w, columns[0], columns[1]);
    }
  }

  /// 16 exact rows, of which those at positions from `begin` to before `end` count.
  struct ExactBlock {
    const ExactTile<T> *keys, *values;
    int position, begin, end;
  };
  __device__ ExactBlock find_block(int block) const {
    const LayerState &state = *task().state;
    const int sinks = sink_blocks(), heads = call_.kv_heads;
    const bool sink = block < sinks;
    const int token = 16 * (sink ? block : block - sinks);
    std::uint16_t *const unpacked = task().unpacked;
    const ExactSlots slots = sink                  ? sink_slots<HeadDim>(state, heads)
                             : unpacked != nullptr ? unpacked_slots(unpacked, heads)
                                                   : tail_slots<HeadDim>(state, heads);
    const auto *tiles = reinterpret_cast<const ExactTile<T> *>(
        slots.template block<HeadDim>(this->stretch().head, token));
    const int position = token + (sink ? 0 : state.sinks + state.paged_tokens);
    return {tiles, tiles + steps * warp_lanes, position, 0, sink ? state.sinks : state.length()};
  }

  // Larger heads' tiles are read when they are met, `piece` of them at a time: there are no registers
  // for more beside the sums.
  static constexpr bool ahead = HeadDim <= 256;
  static constexpr int piece = ahead ? steps : steps % 4 == 0 ? steps / 4 : steps / 2;
  using Tiles = FetchedTiles<T, ahead ? steps : 0>;

  /// Calls meet(s, words) for the tiles of keys or values of a block.
  template <class Meet>
  __device__ static void for_each_tile(const ExactTile<T> *tiles, Meet &&meet) {
#pragma unroll
    for (int first = 0; first < steps; first += piece) {
      const FetchedTiles<T, piece> read(tiles + first * warp_lanes);
#pragma unroll
      for (int s = 0; s < piece; ++s) meet(first + s, read.halves(s));
    }
  }

  /// Adds a block whose keys are on their way, and asks for those of the next.
  __device__ void add_block(const ExactBlock &block, Tiles &keys, const ExactTile<T> *next_keys,
                            ExactSums<HeadDim> &sums) const {
    const int lane = opaque(lane_index()), turned = memory_ + Memory::turned + lane * 8;
    constexpr int early =
        HeadDim > 128 ? 0 : steps;  // tiles of values that are on their way with the keys
    const FetchedTiles<T, early> values(block.values);
    float c[4] = {};
    const auto meet_key = [&](int s, uint4 a) {
      const uint2 b = shared_at<const uint2>(turned + s * Memory::turned_step);
      multiply_add(c, a.x, a.y, a.z, a.w, b.x, b.y);
    };
    if constexpr (ahead) {
#pragma unroll
      for (int s = 0; s < steps; ++s) meet_key(s, keys.halves(s));
    } else {
      for_each_tile(block.keys, meet_key);
    }
    const FetchedTiles<T, ahead ? steps - early : 0> late(block.values + early * warp_lanes);
    if (ahead && next_keys != nullptr) keys = Tiles(next_keys);
    const float norm = this->norm();
    float x[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int at = block.position + (lane >> 2) + 8 * j;
      x[j] = c[2 * j] * norm;
      bend(x[j], at);
      if (at < block.begin || at >= block.end || !sees(at)) x[j] = -INFINITY;
    }
    sums.see(x);
    const uint2 b = {sums.column(x[0]), sums.column(x[1])};
    const auto meet_value = [&](int s, uint4 a) {
      multiply_add(sums.o[s], a.x, a.y, a.z, a.w, b.x, b.y);
    };
    if constexpr (ahead) {
#pragma unroll
      for (int s = 0; s < steps; ++s) {
        if constexpr (early > 0) {
          meet_value(s, values.halves(s));
        } else {
          meet_value(s, late.halves(s));
        }
      }
    } else {
      for_each_tile(block.values, meet_value);
    }
  }
};

}  // namespace squat::cuda
