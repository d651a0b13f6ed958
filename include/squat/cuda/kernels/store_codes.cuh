#pragma once

// Codes into the units of a page. A lane of a warp holds exactly the codes that its words take: of rows
// g + 8 j and of columns 2t, 2t+1 (and 2t+8, 2t+9), so nothing has to move between lanes.

#include <cstdint>

#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// An integer that a float holds, 0 to 255.
__device__ inline Word code_bits(float code) { return __float_as_uint(code + 8388608.0f) & 255u; }

/// Stores one plane of a unit of `Tiles` tiles of 16 rows: code(j, i) is that of row g + 8 j and of the
/// lane's column i of 2 or 4.
template <int Bits, int Columns, int Tiles, class Code>
__device__ inline void store_plane(std::uint8_t *plane, Code &&code) {
  constexpr int count = unit_words(Bits, Tiles, Columns);
  Word words[count] = {};
#pragma unroll
  for (int j = 0; j < 2 * Tiles; ++j) {
#pragma unroll
    for (int i = 0; i < Columns / 4; ++i) {
      const CodePlace place = code_place<Bits, Columns>(8 * j, i / 2 * 8 + i % 2);
      words[place.word] |= code(j, i) << place.bit;
    }
  }
  auto *to = reinterpret_cast<Word *>(plane);
  const int lane = lane_index();
  if constexpr (count % 4 == 0) {
#pragma unroll
    for (int word = 0; word < count; word += 4) {
      *reinterpret_cast<uint4 *>(to + unit_word(count, lane, word)) = {words[word], words[word + 1],
                                                                       words[word + 2], words[word + 3]};
    }
  } else {
#pragma unroll
    for (int word = 0; word < count; ++word) to[unit_word(count, lane, word)] = words[word];
  }
}

/// Stores a unit; one of 3 bits is its low two bits, then its high bit.
template <int Bits, int Columns, int Tiles, class Code>
__device__ inline void store_unit(std::uint8_t *unit, Code &&code) {
  if constexpr (Bits == 3) {
    constexpr int low_bytes = unit_words(2, Tiles, Columns) * 4 * warp_lanes;
    store_plane<2, Columns, Tiles>(unit, [&](int j, int i) { return code(j, i) & 3u; });
    store_plane<1, Columns, Tiles>(unit + low_bytes, [&](int j, int i) { return code(j, i) >> 2; });
  } else {
    store_plane<Bits, Columns, Tiles>(unit, code);
  }
}

}  // namespace squat::cuda
