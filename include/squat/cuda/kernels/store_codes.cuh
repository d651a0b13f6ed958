#pragma once

// Codes into the units of keys and the steps of values of a page. A lane of a warp holds exactly the
// codes that its bytes take (code_places.cuh), so nothing has to move between lanes: places are
// constants, and a plane is stored in pieces of up to 16 bytes a lane.

#include <cstdint>

#include "squat/cuda/page/code_places.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// An integer that a float holds, 0 to 255.
__device__ inline Word code_bits(float code) { return __float_as_uint(code + 8388608.0f) & 255u; }

/// Stores the first `Bytes` bytes of some words, 1, 2 or a multiple of 4, at a multiple of as many (of
/// 16, where there are more).
template <int Bytes, int Count>
__device__ inline void store_words(std::uint8_t *to, const Word (&words)[Count]) {
  static_assert(Bytes <= 4 * Count, "squat: there are as many words as are stored");
  if constexpr (Bytes == 1) {
    *to = static_cast<std::uint8_t>(words[0]);
  } else if constexpr (Bytes == 2) {
    *reinterpret_cast<std::uint16_t *>(to) = static_cast<std::uint16_t>(words[0]);
  } else if constexpr (Bytes % 8 != 0) {
#pragma unroll
    for (int i = 0; i < Bytes / 4; ++i) reinterpret_cast<Word *>(to)[i] = words[i];
  } else if constexpr (Bytes % 16 != 0) {
#pragma unroll
    for (int i = 0; i < Bytes / 4; i += 2)
      reinterpret_cast<uint2 *>(to)[i / 2] = {words[i], words[i + 1]};
  } else {
    static_assert(Bytes == 16, "squat: lanes take turns at pieces of 16 bytes");
    *reinterpret_cast<uint4 *>(to) = {words[0], words[1], words[2], words[3]};
  }
}

/// Stores one plane of a unit of keys of `Tokens` tokens: code(j, i) is that of token g + 8 j and of the
/// lane's channel i, of 2t, 2t + 1 and, in units of 16, 2t + 8, 2t + 9.
template <int Bits, int Columns, int Tokens, class Code>
__device__ inline void store_key_plane(std::uint8_t *plane, Code &&code) {
  constexpr int bytes = key_lane_bytes(Bits, Columns), rows = 4;  // of a slice of 32 tokens
  std::uint8_t *to = plane + lane_index() * bytes;
#pragma unroll
  for (int slice = 0; slice < Tokens / 32; ++slice) {
    Word words[(bytes + 3) / 4] = {};
#pragma unroll
    for (int row = 0; row < rows; ++row) {
#pragma unroll
      for (int i = 0; i < Columns / 4; ++i) {
        const CodePlace at = key_place(Bits, Columns, 8 * row, i / 2 * 8 + i % 2);  // of lane 0
        words[at.byte / 4] |= code(slice * rows + row, i) << (at.byte % 4 * 8 + at.bit);
      }
    }
    store_words<bytes>(to + slice * warp_lanes * bytes, words);
  }
}

/// Stores a unit of keys.
template <int Bits, int Columns, int Tokens, class Code>
__device__ inline void store_key_unit(std::uint8_t *unit, Code &&code) {
  if constexpr (Bits == 3) {
    std::uint8_t *high = unit + Tokens * Columns / 4;
    store_key_plane<2, Columns, Tokens>(unit, [&](int j, int i) { return code(j, i) & 3u; });
    store_key_plane<1, Columns, Tokens>(high, [&](int j, int i) { return code(j, i) >> 2; });
  } else {
    store_key_plane<Bits, Columns, Tokens>(unit, code);
  }
}

/// Stores one plane of 16 tokens' values: code(j, i) is that of channel g + 8 j and of the lane's token
/// i, of 2t, 2t + 1, 2t + 8, 2t + 9.
template <int Bits, int Tiles, class Code>
__device__ inline void store_value_plane(std::uint8_t *plane, Code &&code) {
  constexpr int count = value_words(Bits, Tiles);
  Word words[count] = {};
#pragma unroll
  for (int j = 0; j < 2 * Tiles; ++j) {
    const ValuePlace at = value_word_place(Bits, Tiles, j / 2, j % 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[at.word] |= code(j, i) << (column_byte(i / 2 * 8 + i % 2) * 8 + at.place * Bits);
    }
  }
  constexpr int piece = count % 4 == 0 ? 4 : count;  // words of a lane that follow each other
#pragma unroll
  for (int word = 0; word < count; word += piece) {
    Word stored[piece];
#pragma unroll
    for (int i = 0; i < piece; ++i) stored[i] = words[word + i];
    store_words<4 * piece>(plane + 4 * lane_word(count, lane_index(), word), stored);
  }
}

/// Stores a step of values.
template <int Bits, int Tiles, class Code>
__device__ inline void store_value_step(std::uint8_t *step, Code &&code) {
  if constexpr (Bits == 3) {
    std::uint8_t *high = step + value_plane_bytes(2, Tiles);
    store_value_plane<2, Tiles>(step, [&](int j, int i) { return code(j, i) & 3u; });
    store_value_plane<1, Tiles>(high, [&](int j, int i) { return code(j, i) >> 2; });
  } else {
    store_value_plane<Bits, Tiles>(step, code);
  }
}

}  // namespace squat::cuda
