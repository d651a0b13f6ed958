#pragma once

// The warpgroup of attend_warpgroups.cuh that brings keys and values to shared memory, as B.
//
// In memory they lie as tiles of A, which decode.cuh takes. A lane has 16 bytes of a tile, a word of
// each of its four 8 x 8 parts; of these it makes matrices of B, four stores of a word.

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "squat/coding/coding.hpp"
#include "squat/cuda/kernels/barrier_copy.cuh"
#include "squat/cuda/kernels/exact_blocks.cuh"
#include "squat/cuda/kernels/row_call.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/kernels/warpgroup_memory.cuh"
#include "squat/cuda/kernels/warpgroup_products.cuh"
#include "squat/cuda/page/exact_tiles.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// The warpgroup that brings keys and values. T: of exact rows.
template <class Memory, int Group, bool Ruled, class T, class S>
class GroupProducer : public GroupSegment<Memory, Group, Ruled, S> {
 public:
  using Segment = GroupSegment<Memory, Group, Ruled, S>;
  using Segment::HeadDim, Segment::step_tiles, Segment::Segment;
  using typename Segment::Pages;

  __device__ void clear() {}
  __device__ void store(std::uint8_t *) const {}

  /// Brings the units [first, last) of exact rows, or of pages.
  __device__ void attend(bool exact, int first, int last) {
    if (first >= last) return;
    const int own = 2 * (warp_index() % 4);
    if (exact) {
      // Behind the last block stands that one again: as numbers, for what is masked is multiplied by 0.
      const ExactBlocks<HeadDim> blocks = exact_blocks();
      const int last_block = shape_.exact_blocks - 1, head = head_, heads = call_.call.kv_heads;
      const auto keys = [&](int block) {
        return reinterpret_cast<const uint4 *>(blocks.rows(min(block, last_block), head, heads));
      };
      bring<true>(first, last, false, BlockLayout<HeadDim>::part_elements / 8, [&](int unit) {
        return Place{keys(unit * tiles + own), keys(unit * tiles + own + 1)};
      });
      return;
    }
    constexpr std::size_t head_bytes = Pages::head_bytes(ValueCoding::symmetric);
    constexpr int tile = steps * warp_lanes;
    const auto head = static_cast<std::size_t>(head_);
    if (in_place()) {
      const PageEntry *entries = state_.pages + shape_.first_page;
      const std::size_t offset =
          head * head_bytes + static_cast<std::size_t>(own * tile) * sizeof(uint4);
      bring<false>(first, last, false, Pages::value_codes / 16, [&](int unit) {
        const auto *from = reinterpret_cast<const uint4 *>(entries[unit].data + offset);
        return Place{from, from + tile};
      });
      return;
    }
    const std::size_t page = static_cast<std::size_t>(call_.call.kv_heads) * head_bytes / sizeof(uint4);
    const uint4 *begin = reinterpret_cast<const uint4 *>(call_.unpacked) + own * tile +
                         static_cast<std::size_t>(chunk_page_) * page +
                         head * (head_bytes / sizeof(uint4));
    bring<false>(first, last, true, Pages::value_codes / 16, [&](int unit) {
      const uint4 *from = begin + static_cast<std::size_t>(unit) * page;
      return Place{from, from + tile};
    });
  }

 private:
  using Segment::call_, Segment::memory_, Segment::met_, Segment::shape_, Segment::state_,
      Segment::head_, Segment::chunk_page_, Segment::exact_blocks, Segment::in_place;
  static constexpr int steps = HeadDim / 16, tiles = step_tiles;
  using Tiles = uint4[steps];

  /// Where keys of the warp's two token tiles of a unit are: exact ones in two allocations, perhaps.
  struct Place {
    const uint4 *first, *second;
  };

  /// find(unit): its Place; values: how far behind keys. Some are on their way while others move, and
  /// where the next are is found a unit ahead.
  template <bool Exact, class Find>
  __device__ void bring(int first, int last, bool halves, int values, Find &&find) {
    constexpr Word tile_bytes = 512, key_step = operand_step_bytes(Memory::tokens);
    constexpr Word value_step = Memory::value_step;
    const Word own = 2 * static_cast<Word>(warp_index() % 4), lane = static_cast<Word>(lane_index()) * 4;
    int met = met_;
    met_ += last - first;
    Tiles even, odd;
    Place here = find(first);
    load(even, here.first);
#pragma unroll 1
    for (int unit = first; unit < last; ++unit, ++met) {
      const Place next = find(min(unit + 1, last - 1));
      const bool tells = !Exact && threadIdx.x % group_threads == 0;
      StagedPage page;
      if (tells) page = StagedPage(state_.pages[shape_.first_page + unit]);
      const unsigned parity = Memory::phase(met) ^ 1u;
      load(odd, here.second);
      wait_for(memory_.free(met, 0), parity);
      if (tells) memory_.page(met) = page;
      Word to = memory_.key_stage(met) + own * tile_bytes + lane;
      move<key_step>(to, even, halves);
      load(even, here.first + values);
      move<key_step>(to + tile_bytes, odd, halves);
      publish(memory_.full(met, 0));
      load(odd, here.second + values);
      wait_for(memory_.free(met, 1), parity);
      to = memory_.value_stage(met) + own * value_step + lane;
      move<tile_bytes>(to, even, halves);
      here = next;
      load(even, here.first);
      move<tile_bytes>(to + value_step, odd, halves);
      publish(memory_.full(met, 1));
    }
  }

  __device__ static void load(Tiles &to, const uint4 *from) {
#pragma unroll
    for (int i = 0; i < steps; ++i) to[i] = read_written_once(from + i * warp_lanes + lane_index());
  }
  /// Writes tiles of A as four matrices each, `Stride` bytes from one to the next; to: a shared address.
  template <Word Stride>
  __device__ static void move(Word to, const Tiles &from, bool halves) {
#pragma unroll
    for (int i = 0; i < steps; ++i) {
      const uint4 a = std::is_same_v<T, half> || halves ? from[i] : ExactTile<T>{from[i]}.halves();
      const auto write = [&](Word matrix, Word word) {
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + i * Stride + matrix * 128), "r"(word)
                     : "memory");
      };
      write(0, a.x), write(2, a.y), write(1, a.z), write(3, a.w);
    }
  }
  __device__ static void publish(CopyBarrier *barrier) {
    publish_operand();
    arrive_at(barrier);
  }
};

}  // namespace squat::cuda
