#pragma once

// Trellis codes of a page (page/trellis_places.cuh) as pairs of integers, of which a level is a
// sixteenth: what unpack_tile.cuh is of scalar codes.

#include <cstdint>

#include "squat/cuda/kernels/trellis_levels.cuh"
#include "squat/cuda/page/code_places.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/trellis_places.cuh"

namespace squat::cuda {

/// A lane's codes of a plane of 1 or 2 bits of a unit of keys; lane: of the page's.
template <int Bits, int Columns>
__device__ inline Word read_trellis_lane(const std::uint8_t *plane, int lane) {
  constexpr int bytes = key_lane_bytes(Bits, Columns);
  const std::uint8_t *from = plane + lane * bytes;
  if constexpr (bytes == 4) return *reinterpret_cast<const Word *>(from);
  if constexpr (bytes == 2) return *reinterpret_cast<const std::uint16_t *>(from);
  return *from;
}

/// The codes of rows g and g + 8 of row tile `tile` of a unit of keys of `Tokens` tokens, as a0 to a3,
/// of units of 8 channels as a0 and a1.
template <int Bits, int Columns, int Tokens>
__device__ inline void read_trellis_keys(const std::uint8_t *unit, int tile, Word *codes) {
  constexpr int plane_bits = Bits == 1 ? 1 : 2, half = Columns;  // bits of two tokens' codes
  const int lane = tile / 2 * warp_lanes + lane_index();
  const auto read = [&](int before) {
    return read_trellis_lane<plane_bits, Columns>(unit, (lane - before) & (Tokens - 1));
  };
  const bool later = tile % 2 != 0;  // tokens 2 and 3 of the lane's
  const Word x = read(0), last = read(4);
  Word rows[2];
  if constexpr (Bits == 1) {
    const Word second = read(8);
    const Word a = later ? trellis_index<2>(x, last, second) : trellis_index<0>(x, last, second);
    const Word b = later ? trellis_index<3>(x, last, second) : trellis_index<1>(x, last, second);
    rows[0] = trellis_levels<1, false>(a, 0);
    rows[1] = trellis_levels<1, false>(b, 0);
  } else {
    const auto [first, second] = trellis_indices(x, x << half | last >> half, last);
    Word third = 0;
    if constexpr (Bits == 3) {
      third = read_trellis_lane<1, Columns>(unit + Tokens * Columns / 4, lane);
      if (later) third <<= 2;
    }
    const int by = later ? half : 0;
    rows[0] = trellis_levels<Bits, false>(first >> by, third);
    rows[1] = trellis_levels<Bits, true>(second >> by, third << 1);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if constexpr (Columns == 16) {
      codes[i] = __byte_perm(rows[i], 0, 0x4240);
      codes[2 + i] = __byte_perm(rows[i], 0, 0x4341);
    } else {
      codes[i] = __byte_perm(rows[i], 0, 0x4140);
    }
  }
}

/// Calls visit(channel, token, codes) for pairs of tokens of a lane's values: of 32 tokens, every other
/// word from `first` on. codes: of the token and the next.
template <int Bits, int HeadDim, class Visit>
__device__ inline void read_trellis_values(const std::uint8_t *slice, int first, Visit &&visit) {
  constexpr int tiles = HeadDim / 16, plane_bits = Bits == 1 ? 1 : 2;
  constexpr int words = trellis_value_words(plane_bits, tiles), in_word = 4 / plane_bits;
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  const auto word = [&](int words_of_lane, int index) {
    const bool is = index >= 0;
    const int of_lane = is ? lane : (lane - 4) & (warp_lanes - 1);
    return lane_word(words_of_lane, of_lane, is ? index : words_of_lane + index);
  };
  const auto *plane = reinterpret_cast<const Word *>(slice);
  const auto visit_levels = [&](int channel, Word low, Word high) {
    visit(channel, 8 * t, __byte_perm(low, 0, 0x4140));
    visit(channel, 8 * t + 4, __byte_perm(low, 0, 0x4342));
    visit(channel, 8 * t + 2, __byte_perm(high, 0, 0x4140));
    visit(channel, 8 * t + 6, __byte_perm(high, 0, 0x4342));
  };
#pragma unroll 1
  for (int j = first; j < words; j += 2) {
    const Word x = plane[word(words, j)], before = plane[word(words, j - 1)],
               second = plane[word(words, j - 2)];
    const int channel = g * (HeadDim / 8) + j * in_word;
    Word low, high;
    if constexpr (Bits == 1) {
      const auto of = [&]<int Phase>() {
        trellis_levels<1, false>(trellis_index<Phase>(x, before, second), 0, low, high);
        visit_levels(channel + Phase, low, high);
      };
      of.template operator()<0>();
      of.template operator()<1>();
      of.template operator()<2>();
      of.template operator()<3>();
    } else {
      const auto [of_first, of_second] = trellis_indices(x, before, second);
      Word third = 0;
      if constexpr (Bits == 3) {
        const auto *high_plane = reinterpret_cast<const Word *>(slice + 2 * value_plane_bytes(2, tiles));
        third = high_plane[word(words / 2, j / 2)] << j % 2 * 2;
      }
      trellis_levels<Bits, false>(of_first, third, low, high);
      visit_levels(channel, low, high);
      trellis_levels<Bits, true>(of_second, third << 1, low, high);
      visit_levels(channel + 1, low, high);
    }
  }
}

}  // namespace squat::cuda
