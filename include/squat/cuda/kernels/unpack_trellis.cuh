#pragma once

// Trellis codes of a page (page/trellis_places.cuh) as pairs of integers, of which a level is a
// sixteenth: what unpack_tile.cuh is of scalar codes.

#include <cstdint>

#include "squat/cuda/kernels/trellis_levels.cuh"
#include "squat/cuda/page/code_places.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/trellis_places.cuh"

namespace squat::cuda {

/// The codes of rows g and g + 8 of row tile `tile` of a unit of keys of `Tokens` tokens, as a0 to a3,
/// of units of 8 channels as a0 and a1.
template <int Columns, int Tokens>
__device__ inline void read_trellis_keys(const std::uint8_t *unit, int tile, Word *codes) {
  constexpr int bytes = key_lane_bytes(trellis_key_bits, Columns), half = Columns;  // bits of two tokens
  const int lane = tile / 2 * warp_lanes + lane_index();
  const auto read = [&](int of_lane) -> Word {
    const std::uint8_t *from = unit + (of_lane & (Tokens - 1)) * bytes;
    if constexpr (bytes == 4) return *reinterpret_cast<const Word *>(from);
    return *reinterpret_cast<const std::uint16_t *>(from);
  };
  const Word x = read(lane), last = read(lane - 4);
  const auto [first, second] = trellis_indices(x, x << half | last >> half, last);
  const int by = tile % 2 != 0 ? half : 0;  // tokens 2 and 3 of the lane's, or 0 and 1
  const Word rows[2] = {trellis_levels<2, false>(first >> by, 0),
                        trellis_levels<2, true>(second >> by, 0)};
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
  constexpr int tiles = HeadDim / 16, words = trellis_value_words(2, tiles);
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
    const auto [of_first, of_second] = trellis_indices(x, before, second);
    const int channel = g * (HeadDim / 8) + j * 2;
    Word low, high, third = 0;
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

}  // namespace squat::cuda
