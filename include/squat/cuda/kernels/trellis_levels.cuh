#pragma once

// Levels of trellis codes (coding/trellis.hpp) of eight rows at a time, a nibble each: words of a page
// (page/trellis_places.cuh) and those before them become indices, and these bytes.
//
// Of codes of 2 bits, c0 the newest and c3 the oldest of a window, an index is
//
//   high pair  c1 ^ c2          low pair  c0 ^ c2 ^ c3
//
// by the masks of the hash. A word x has two codes of each row; in `before` and `second` are those of
// the two words before it. The window of its second code ends with the word: there c0 ^ c1 ^ c3 takes a
// bit operation less, and a table of its own order.

#include <array>
#include <cstdint>

#include "squat/coding/trellis.hpp"
#include "squat/cuda/kernels/trellis_tables.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

static_assert(hash_masks == std::array<std::uint8_t, 4>{5, 10, 1, 2},
              "squat: indices are made for this hash");

/// What is added to levels, so that they are unsigned bytes: numbers that belong to a zero and a scale
/// are (level + origin) / trellis_unit.
inline constexpr int level_origin = trellis_middle * trellis_unit;
static_assert(level_origin > largest_level && level_origin + largest_level < 128);

/// The bits of a where mask has ones, else those of b.
__device__ inline Word select_bits(Word mask, Word a, Word b) { return (a & mask) | (b & ~mask); }

inline constexpr Word low_pairs = 0x33333333u, high_bits = 0x88888888u;

/// Nibbles of indices.
struct TrellisIndices {
  Word first;   ///< of the first codes of a word
  Word second;  ///< of the second, their low pairs changed by their high ones
};

/// Of words of 2-bit codes.
__device__ inline TrellisIndices trellis_indices(Word x, Word before, Word second) {
  const Word met = select_bits(low_pairs, (x ^ before) >> 2, before << 2);
  return {met ^ select_bits(low_pairs, second, before), x ^ met};
}

/// Of words of 1-bit codes, four a nibble, the windows that end with code `Phase`.
template <int Phase>
__device__ inline Word trellis_index(Word x, Word before, Word second) {
  constexpr int taken = Phase + 1;  // of x
  constexpr Word mask = ((1u << taken) - 1) * 0x11111111u;
  const Word newest = Phase == 3 ? x : select_bits(mask, x >> (4 - taken), before << taken);
  const Word oldest = Phase == 3 ? before : select_bits(mask, before >> (4 - taken), second << taken);
  return newest ^ select_bits(low_pairs, oldest ^ oldest >> 2, oldest << 2);
}

/// Four levels and their origin, from index 4 Part on; of codes of 3 bits there are another 16 where the
/// third bit is set. Changed: by indices whose low pair their high one has changed.
template <int Bits, bool Changed, int Part>
inline constexpr Word level_word = [] {
  Word word = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned changed = 4 * Part + i, index = Changed ? changed ^ (changed & 15) >> 2 : changed;
    word |= static_cast<Word>(trellis_code(Bits).levels[index] + level_origin) << 8 * i;
  }
  return word;
}();

/// The bytes of (a, b) that four nibbles select, or where a nibble has its high bit, that byte's sign
/// eight times. (__byte_perm leaves that bit out.)
__device__ inline Word select_bytes(Word a, Word b, Word nibbles) {
  Word selected;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(selected) : "r"(a), "r"(b), "r"(nibbles));
  return selected;
}

/// The levels of the four nibbles in the low half of an index, from one half of the table; flipped: the
/// index with the high bits of nibbles turned. Bytes below 128 come to 0 where a selector has its high
/// bit.
template <int Bits, bool Changed, int Set>
__device__ inline Word levels_of_four(Word index, Word flipped) {
  constexpr int first = 4 * Set;
  return select_bytes(level_word<Bits, Changed, first>, level_word<Bits, Changed, first + 1>, index) |
         select_bytes(level_word<Bits, Changed, first + 2>, level_word<Bits, Changed, first + 3>,
                      flipped);
}

/// The same of both halves of the table, where codes have 3 bits. set: third bits of codes, the high
/// ones of nibbles whose others are 0.
template <int Bits, bool Changed>
__device__ inline Word levels_of_four(Word index, Word flipped, Word set) {
  const Word low = levels_of_four<Bits, Changed, 0>(index, flipped);
  if constexpr (Bits < 3) return low;
  // A byte of 0x80, or of its sign: of all but the highest bit none or all.
  constexpr Word sign = 0x80808080u;
  return select_bits(select_bytes(sign, sign, set), levels_of_four<3, Changed, 1>(index, flipped), low);
}

/// The levels of the four nibbles in the low half of an index. third: nibbles whose high bit is the
/// third bit of codes.
template <int Bits, bool Changed>
__device__ inline Word trellis_levels(Word index, Word third) {
  return levels_of_four<Bits, Changed>(index, index ^ high_bits, third & high_bits);
}

/// Of all eight, four a word.
template <int Bits, bool Changed>
__device__ inline void trellis_levels(Word index, Word third, Word &low, Word &high) {
  const Word flipped = index ^ high_bits, set = third & high_bits;
  low = levels_of_four<Bits, Changed>(index, flipped, set);
  high = levels_of_four<Bits, Changed>(index >> 16, flipped >> 16, set >> 16);
}

/// The number that belongs to a zero and a scale of one code of up to 3 bits. code(n): the code n before
/// it in its row.
template <class Code>
__device__ inline float trellis_number(int bits, Code &&code) {
  const int step = bits == 1 ? 1 : 2;  // bits of a code that its window shows
  unsigned window = 0;
  for (int before = window_bits / step; before-- > 0;)
    window = window << step | (static_cast<unsigned>(code(before)) & ((1u << step) - 1));
  const auto index = static_cast<int>(device_trellis_index(window));
  const float level = bits == 1      ? trellis_level<1, 0>(index)
                      : bits == 2    ? trellis_level<2, 0>(index)
                      : code(0) >= 4 ? trellis_level<3, 16>(index)
                                     : trellis_level<3, 0>(index);
  return (level + level_origin) / trellis_unit;
}

}  // namespace squat::cuda
