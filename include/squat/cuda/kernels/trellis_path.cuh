#pragma once

// The path of least squared error through the trellis of a circular row, as TrellisSearch finds it
// (coding/trellis_search.hpp): the same integers, and so the same codes. Half a warp searches a row.
//
// A lane holds the 16-bit costs of the states that differ in their newest code, and at one bit in their
// two oldest too: 4 of 64 or 8 of 128, two in a register. The other four bits of a state, its middle,
// say which lane: they go round, so that from one element to the next only one digit of the lane, a code
// wide, changes its meaning. It named the code that is to be the oldest, and comes to name the newest:
//
//   2 bits: lane (c1 c0), slot n, states c1 c0 n -> lane (n c0), slot c1: o c1 c0 of the next element
//
// So lanes exchange costs across that digit alone, and have all costs before `4 / step` phases returned
// to where they began. For every state the candidates, cost + distance, are then in one lane: 16 packed
// additions of which 12 are minima too (VIADDMNMX on Hopper).
//
// An index is linear in its window's bits under exclusive or: of a lane's windows all but the slot and
// the oldest code make its base, and the two together reach four indices beside it, or eight at one bit.
// Distances are worked out eight elements ahead, a lane for each index, and pass through shared memory.
//
// Wherever the next elements could take costs beyond 16 bits they are made smaller by the cost of state
// 0, less `offset`, which is more than they differ by: so they are at least 0 and at most 2 offset. That
// holds from when a search's first state has paths to all others, in reach_steps elements: until then
// costs stay as they are, at most offset + reach_steps * most_step.
//
// An element of two rows takes some 40 instructions, 60 at one bit, of which 4 shuffles at 3 bits, 3.5
// at 2 and 2.5 at 1; and 32 bytes of decisions.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/coding/trellis.hpp"
#include "squat/coding/trellis_search.hpp"
#include "squat/cuda/kernels/trellis_tables.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

inline constexpr int half_warp = warp_lanes / 2;

/// Searches rows of `Count` elements: a row for each half of a warp.
template <int Bits, int Count>
class TrellisPath {
  using Rule = squat::detail::SearchRule<Bits>;
  static constexpr int step = Rule::step, choices = Rule::choices, registers = Rule::states / 32;
  static constexpr int phases = 4 / step, high_bits = window_bits - 2 * step - 4;
  static constexpr int seam = squat::detail::seam_reach, batch = 8;
  static constexpr int codes_of_word = 32 / step;
  static constexpr Word all = 0xffffffffu;

  static constexpr int most_step = Rule::most_distance << step;
  /// More than two costs of one element ever differ by, but for the codes in their low bits.
  static constexpr int offset = (Rule::reach_steps * Rule::most_distance + 1) << step;
  /// Every how many elements costs are made smaller.
  static constexpr int smaller_every = 2 * (offset + choices) + 2 * most_step < 1 << 16 ? 2 : 1;
  static_assert(2 * (offset + choices) + smaller_every * most_step < 1 << 16 &&
                offset + choices + Rule::reach_steps * most_step < 1 << 16);
  static_assert(Count % trellis_row == 0 && seam % batch == 0 && batch % phases == 0 &&
                step * phases == 4);

 public:
  static constexpr int element_stride = Count + 4;  // halves of a warp read from different banks
  static constexpr int steps = Count > 2 * seam ? Count : 2 * seam;
  static constexpr int words = 2 * element_stride + 16 * batch + 8 * steps + 2 * Count / codes_of_word;

  /// scratch: `words` words of shared memory, aligned to 16 bytes.
  __device__ explicit TrellisPath(Word *scratch)
      : lane_(lane_index() % half_warp),
        half_(lane_index() / half_warp),
        elements_(reinterpret_cast<float *>(scratch) + half_ * element_stride),
        distances_(reinterpret_cast<std::uint16_t *>(scratch + 2 * element_stride) + half_ * 16),
        decisions_(scratch + 2 * element_stride + 16 * batch + lane_index()),
        codes_(scratch + 2 * element_stride + 16 * batch + 8 * steps + half_ * (Count / codes_of_word)) {
    const float unit = squat::detail::element_steps;
    level_ = unit * trellis_level<Bits, 0>(lane_);
    if constexpr (Bits == 3) high_level_ = unit * trellis_level<Bits, 16>(lane_);
#pragma unroll
    for (int phase = 0; phase < phases; ++phase) {
      const auto middle = static_cast<unsigned>(middle_of(phase)),
                 digit = static_cast<unsigned>(digit_of(phase));
      const unsigned oldest = step == 1 ? 0 : digit;  // of the first candidate
      const unsigned base = device_trellis_index(oldest << (window_bits - step) | middle << step);
      phases_[phase] = {0x1010u + 0x2222u * digit, 0x3210u ^ 0x2222u * (base & 3), base / 4};
    }
  }

  /// Element i in quarters of a level.
  __device__ float &element(int i) const { return elements_[i]; }

  /// Finds the codes of the elements that were set.
  __device__ void search() {
    Word costs[registers];
    begin_anywhere(costs);
    advance<2 * seam>(costs, Count - seam % Count);
    Place place = best_place(costs);
    read_back<seam>(seam, place);
    begin_at(place, costs);
    advance<Count>(costs, 0);
    read_back<Count>(0, place);
    __syncwarp();
  }

  /// The window of element i.
  __device__ unsigned window(int i) const {
    const int word = i / codes_of_word;
    const Word before = codes_[(word > 0 ? word : Count / codes_of_word) - 1];
    return __funnelshift_r(codes_[word], before, 32 - step - i % codes_of_word * step) & 255u;
  }

 private:
  /// What a lane does in elements of one phase.
  struct Phase {
    Word own;        // selects the cost that the lane keeps, twice
    Word pair;       // selects the distances of indices base and base ^ 1
    unsigned group;  // base / 4
  };

  /// Where a state's cost is.
  struct Place {
    int lane, high, newest;  // high: the bits above the middle
  };

  __device__ static constexpr Word both(int x) { return static_cast<Word>(x) * 0x10001u; }

  /// The lowest bit of the digit that lanes exchange costs across before an element.
  __device__ static constexpr int digit_shift(int phase) { return (phases - phase) % phases * step; }
  __device__ int digit_of(int phase) const { return lane_ >> digit_shift(phase) & (choices - 1); }
  /// The middle of the lane's states after an element.
  __device__ int middle_of(int phase) const {
    return (lane_ << phase * step | lane_ >> (4 - phase * step)) & 15;
  }

  /// A state's bits that say in which register and half its cost is.
  __device__ static constexpr int slot_bits(int index, int half) {
    return (step == 2 ? 2 * index : index << 5) + half;
  }
  __device__ int state_of(int phase, int index, int half) const {
    return slot_bits(index, half) | middle_of(phase) << step;
  }

  __device__ void begin_anywhere(Word (&costs)[registers]) const {
#pragma unroll
    for (int i = 0; i < registers; ++i) costs[i] = oldest_of(phases - 1, i);
  }
  __device__ void begin_at(Place first, Word (&costs)[registers]) const {
    begin_anywhere(costs);
#pragma unroll
    for (int i = 0; i < registers; ++i) {
      const int high = step == 2 ? 0 : i, newest = step == 2 ? 2 * i : 0;
      const bool here = lane_ == first.lane && high == first.high;
      if (!here || newest != first.newest) costs[i] += offset;
      if (!here || newest + 1 != first.newest) costs[i] += offset << 16;
    }
  }

  /// The oldest code of the two states of a register.
  __device__ Word oldest_of(int phase, int index) const {
    return static_cast<Word>(state_of(phase, index, 0) >> Rule::oldest_shift) * 0x10001u;
  }

  /// Where the first state of least cost is, after an element of the last phase.
  __device__ Place best_place(const Word (&costs)[registers]) const {
    Word best = all;
#pragma unroll
    for (int i = 0; i < registers; ++i) {
      best = min(best, costs[i] << 16 | static_cast<Word>(state_of(phases - 1, i, 0)));
      best = min(best, (costs[i] & 0xffff0000u) | static_cast<Word>(state_of(phases - 1, i, 1)));
    }
#pragma unroll
    for (int other = half_warp / 2; other > 0; other /= 2) {
      best = min(best, __shfl_xor_sync(all, best, other));
    }
    const int state = static_cast<int>(best & 0xffffu), middle = state >> step & 15;
    return {(middle << step | middle >> (4 - step)) & 15, state >> (step + 4), state & (choices - 1)};
  }

  /// Goes on through `Steps` elements of the circular row, from `first` on, and writes their decisions.
  template <int Steps>
  __device__ void advance(Word (&costs)[registers], int first) const {
    static_assert(Steps % batch == 0);
    float x[batch];
    __syncwarp();  // what others read of the last elements, and wrote of these
    load_elements(first % Count, x);
#pragma unroll
    for (int i = 0; i < batch; ++i) write_distance(i, x[i]);
#pragma unroll 1
    for (int begin = 0; begin < Steps; begin += batch) {
      uint2 distances[batch][4];
      __syncwarp();
#pragma unroll
      for (int i = 0; i < batch; ++i) load_distances(i, distances[i]);
      load_elements((first + begin + batch) % Count, x);
      __syncwarp();
      Word decided = 0;
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        write_distance(i, x[i]);
        advance_states(i, begin == 0 && i < Rule::reach_steps, costs, distances[i], decided);
        if (i % 4 == 3) {
          decisions_[(begin + i) / 4 * warp_lanes] = decided;
          decided = 0;
        }
      }
    }
  }

  __device__ void load_elements(int first, float (&x)[batch]) const {
#pragma unroll
    for (int i = 0; i < batch; i += 4) {
      const float4 four = *reinterpret_cast<const float4 *>(elements_ + first + i);
      x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
    }
  }

  /// The distance of element i of a batch from the lane's index, times 2^step. A sum's last place is
  /// 2^distance_shift here, and what lies below is cut off.
  __device__ void write_distance(int i, float x) const {
    constexpr float most = Rule::most_difference, unit = 8388608.0f * (1 << Rule::distance_shift);
    float difference = fabsf(x - level_);
    if constexpr (Bits == 3) difference = fminf(difference, fabsf(x - high_level_));
    difference = fminf(difference, most);
    const Word distance = __float_as_uint(__fmaf_rz(difference, difference, unit)) << step;
    distances_[i * warp_lanes + lane_] = static_cast<std::uint16_t>(distance);
  }

  /// Of every group of four indices, by the difference of its number from that of the base: an element's
  /// and each phase's. Groups that no candidate takes are not loaded.
  __device__ void load_distances(int i, uint2 (&to)[4]) const {
    const unsigned own = phases_[i % phases].group;
#pragma unroll
    for (unsigned group = 0; group < 4; ++group) {
      to[group] = reinterpret_cast<const uint2 *>(distances_ + i * warp_lanes)[own ^ group];
    }
  }

  /// Element i of a batch, with costs that are not made smaller if `keep`, and its decisions into
  /// `decided` from bit i % 4 * 4 on: of register r and half h they are at bit 16 h + step r of those.
  __device__ void advance_states(int i, bool keep, Word (&costs)[registers], uint2 (&distances)[4],
                                 Word &decided) const {
    const int phase = i % phases;
    if (i % smaller_every == 0) {
      const Word first = __shfl_sync(all, __byte_perm(costs[0], 0, 0x1010), 0, half_warp);
      const Word added = keep ? 0 : __vadd2(both(offset + 1), ~first);  // offset - first
#pragma unroll
      for (uint2 &four : distances) four = {__vadd2(four.x, added), __vadd2(four.y, added)};
    }
    Word before[choices][registers];
    exchange(phase, costs, before);
#pragma unroll
    for (int r = 0; r < registers; ++r) {
      Word best = 0;
#pragma unroll
      for (int candidate = 0; candidate < choices; ++candidate) {
        const unsigned index = device_trellis_index(
            static_cast<unsigned>(candidate << (window_bits - step) | slot_bits(r, 0)));
        const uint2 four = distances[index / 4];
        const Word pair = __byte_perm(four.x, four.y, phases_[phase].pair ^ 0x2222u * (index & 3));
        best = candidate == 0 ? __vadd2(before[candidate][r], pair)
                              : __viaddmin_u16x2(before[candidate][r], pair, best);
      }
      decided += (best & both(choices - 1)) << (i % 4 * 4 + r * step);
      costs[r] = (best & ~both(choices - 1)) | oldest_of(phase, r);
    }
  }

  /// The costs that an element's candidates come from, each in both halves.
  __device__ void exchange(int phase, const Word (&costs)[registers],
                           Word (&before)[choices][registers]) const {
    const int digit = 1 << digit_shift(phase);
    const Word own = phases_[phase].own;
    if constexpr (step == 2) {
      // Candidate k comes over code k xor the lane's digit: from the lane that has this digit.
#pragma unroll
      for (Word k = 0; k < choices; ++k) {
        Word cost = __byte_perm(costs[0], costs[1], own ^ 0x2222u * k);
        if (k != 0) cost = __shfl_xor_sync(all, cost, static_cast<int>(k) * digit);
        before[k][0] = before[k][1] = cost;
      }
    } else {
      // Registers are numbered by their states' two oldest bits, the second of which becomes the oldest.
      const bool one = own != 0x1010u;
      const Word sent = one ? 0x5410u : 0x7632u;
#pragma unroll
      for (int oldest = 0; oldest < 2; ++oldest) {
        const Word *of_oldest = costs + 2 * oldest;
        const Word other = __shfl_xor_sync(all, __byte_perm(of_oldest[0], of_oldest[1], sent), digit);
#pragma unroll
        for (Word second = 0; second < 2; ++second) {
          const Word theirs = 0x5454u + 0x2222u * second, mine = of_oldest[second];
          before[oldest][2 * second] = __byte_perm(mine, other, one ? theirs : own);
          before[oldest][2 * second + 1] = __byte_perm(mine, other, one ? own : theirs);
        }
      }
    }
  }

  /// Reads `Steps` codes from the decisions that begin with element `first`, backwards from `place`.
  template <int Steps>
  __device__ void read_back(int first, Place &place) const {
#pragma unroll 1
    for (int word = Steps / codes_of_word; word-- > 0;) {
      Word codes = 0;
#pragma unroll
      for (int i = codes_of_word - 1; i >= 0; --i) {
        const Word decided = decisions_[(first + word * codes_of_word + i) / 4 * warp_lanes];
        codes = __funnelshift_r(codes, static_cast<Word>(place.newest), step);
        const int slot =
            step == 2 ? place.newest / 2 * 2 + place.newest % 2 * 16 : place.high + place.newest * 16;
        const Word of_lane = __shfl_sync(all, decided, place.lane, half_warp);
        const int oldest = static_cast<int>(of_lane >> (i % 4 * 4 + slot)) & (choices - 1);
        // The bits above the digit move down by a code.
        const int above = oldest << high_bits | place.high, shift = digit_shift(i % phases);
        place.newest = place.lane >> shift & (choices - 1);
        place.lane = (place.lane & ~((choices - 1) << shift)) | (above & (choices - 1)) << shift;
        place.high = above >> step;
      }
      if (lane_ == 0) codes_[word] = codes;
    }
  }

  int lane_, half_;               // within the half, and which half
  float *elements_;               // [Count]
  std::uint16_t *distances_;      // [batch, 2, 16]
  Word *decisions_;               // [steps / 4, 2, 16]: four elements' of a lane
  Word *codes_;                   // [Count / codes_of_word], a word's newest in its low bits
  float level_, high_level_ = 0;  // of the lane's index, in quarters
  Phase phases_[phases];
};

}  // namespace squat::cuda
