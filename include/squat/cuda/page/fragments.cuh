#pragma once

// Matrix fragments of a warp, and codes as their elements.
//
// mma.sync multiplies a 16 x 16 (or 16 x 8) matrix A of float16 by a 16 x 8 (or 8 x 8) matrix B and adds
// to a 16 x 8 matrix C of float. Lane l of the warp, g = l / 4, t = l % 4, holds
//
//   A: a0 = (row g, columns 2t, 2t+1), a1 = (row g+8, same), a2, a3 = the same rows, columns 2t+8, 2t+9
//   B: b0 = (rows 2t, 2t+1, column g), b1 = (rows 2t+8, 2t+9, column g)
//   C: c0, c1 = (row g, columns 2t, 2t+1), c2, c3 = (row g+8, same columns)
//
// Codes are A. A code of b bits in the low ten bits of a float16 is a subnormal number, code * 2^-24
// times the power of two of its place, and the matrix units take subnormals at full speed: one AND makes
// two elements of two codes, with no conversion. A word of 32 bits is two halves of two bytes; a byte
// has 8 / b places. The codes at one place of one byte of both halves are a register of A: low bytes are
// rows g, high bytes rows g + 8, and the places of a byte are columns 0 to 7 and 8 to 15 of as many
// tiles of 16 rows as fit:
//
//   16 columns: tile i has words [i b / 4, ...); place p + F of byte 0 is a2 where F = 4 / b places lie
//   between (b <= 4), so that columns 8 to 15 count 16 times as much, and tile i counts 2^(b p) times,
//   p = i % F. Codes of 8 bits take two words a tile: bytes of the first are a0, a2, of the second a1,
//   a3. 8 columns: tile i has place p = i % (8 / b), and counts 2^(b p) times.
//
// Columns 8 to 15 are made up for in B, what tiles count in C (tile_factor) or, where widths differ, in
// B as well. The factor 2^24 is left to whoever reads C.

#include <cuda_fp16.h>

#include <cstdint>

namespace squat::cuda {

inline constexpr int warp_lanes = 32;

/// Query rows of a column tile: the columns of B and C.
inline constexpr int column_count = 8;

/// What the products of code elements have to be multiplied by.
inline constexpr float code_unit = 16777216.0f;  // 2^24

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) % warp_lanes; }

__device__ inline int warp_index() { return static_cast<int>(threadIdx.x) / warp_lanes; }

using Word = std::uint32_t;

/// Probabilities of 16 tokens: of rows g and of rows g + 8, columns 2t and 2t + 1.
using TokenWeights = uint2;

/// C += A B, A 16 x 16.
__device__ inline void multiply_add(float (&c)[4], Word a0, Word a1, Word a2, Word a3, Word b0,
                                    Word b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// C = A B, A 16 x 16.
__device__ inline void multiply(float (&c)[4], Word a0, Word a1, Word a2, Word a3, Word b0, Word b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%10,%10,%10};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(0.0f));
}

/// C += A B, A 16 x 8.
__device__ inline void multiply_add(float (&c)[4], Word a0, Word a1, Word b0) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b0));
}

/// An 8 x 8 matrix of float16, lane l holding (row g, columns 2t, 2t+1), transposed.
__device__ inline Word transpose(Word x) {
  Word y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

__device__ inline Word as_word(__half2 x) { return *reinterpret_cast<Word *>(&x); }
__device__ inline __half2 as_halves(Word x) { return *reinterpret_cast<__half2 *>(&x); }
__device__ inline Word halves(float low, float high) { return as_word(__floats2half2_rn(low, high)); }
__device__ inline Word multiply(Word a, Word b) { return as_word(__hmul2(as_halves(a), as_halves(b))); }
__device__ inline Word multiply(Word a, float factor) {
  return as_word(__hmul2(as_halves(a), __float2half2_rn(factor)));
}

/// Two elements: the codes at place `place` of byte `byte` of both halves of a word.
template <int Bits>
__device__ constexpr Word code_elements(Word word, int byte, int place) {
  constexpr Word mask = (1u << Bits) - 1;
  return (word >> (8 * byte)) & ((mask | mask << 16) << (place * Bits));
}

/// Words a lane holds of a unit of `tiles` tiles of 16 rows and 16 or 8 columns.
__host__ __device__ constexpr int unit_words(int bits, int tiles, int columns) {
  return (tiles * columns * bits + 63) / 64;
}

/// Where word `word` of a lane stands among a unit's, which has `words` a lane: pieces of 16 bytes of
/// all lanes follow each other, so that a warp reads without bank conflicts.
__host__ __device__ constexpr int unit_word(int words, int lane, int word) {
  return words % 4 == 0 ? (word / 4 * warp_lanes + lane) * 4 + word % 4 : lane * words + word;
}

/// Tiles of a unit that share a place of their words.
__host__ __device__ constexpr int tile_places(int bits, int columns) {
  return columns == 8 ? 8 / bits : bits == 8 ? 1 : 4 / bits;
}

/// What C of tile i counts its codes by, over what B counts them by: that of 2 bits where planes of
/// several widths meet in one C, so that the most frequent need no factor.
template <int Bits>
__host__ __device__ constexpr float tile_factor(int i) {
  return Bits <= 3 && i % 2 != 0 ? 4.0f : 1.0f;
}

/// c += 2^-24 times the codes at place p of one word (two of 8 bits) times B, scaled for its place.
template <int Bits, int Columns>
__device__ inline void multiply_place(float (&c)[4], const Word *words, int p, Word b0, Word b1) {
  if constexpr (Columns == 8) {
    multiply_add(c, code_elements<Bits>(words[0], 0, p), code_elements<Bits>(words[0], 1, p), b0);
  } else if constexpr (Bits == 8) {
    multiply_add(c, code_elements<8>(words[0], 0, 0), code_elements<8>(words[1], 0, 0),
                 code_elements<8>(words[0], 1, 0), code_elements<8>(words[1], 1, 0), b0, b1);
  } else {
    constexpr int places = tile_places(Bits, 16);
    multiply_add(c, code_elements<Bits>(words[0], 0, p), code_elements<Bits>(words[0], 1, p),
                 code_elements<Bits>(words[0], 0, p + places),
                 code_elements<Bits>(words[0], 1, p + places), b0, b1);
  }
}

/// Words of a lane that tile i of a unit begins with.
__host__ __device__ constexpr int tile_word(int bits, int columns, int i) {
  return columns == 16 && bits == 8 ? 2 * i : i / tile_places(bits, columns);
}

/// C[i] += 2^-24 tile_factor<Common>(i) times the codes of tile i of a unit times b(i), B for columns of
/// 16 (or 8, then its second word is not read).
template <int Bits, int Columns, int Common, int Tiles, class B>
__device__ inline void multiply_codes_by(float (&c)[Tiles][4], const Word *words, B &&b) {
  constexpr int places = tile_places(Bits, Columns);
#pragma unroll
  for (int i = 0; i < Tiles; ++i) {
    const int p = i % places;
    const float factor = tile_factor<Common>(i) / static_cast<float>(1 << (Bits == 8 ? 0 : Bits * p));
    const uint2 own = b(i);
    const Word low = factor == 1.0f ? own.x : multiply(own.x, factor);
    const float high_factor = Columns == 16 && Bits < 8 ? factor / 16 : factor;
    const Word high = Columns == 8 ? 0 : high_factor == 1.0f ? own.y : multiply(own.y, high_factor);
    multiply_place<Bits, Columns>(c[i], words + tile_word(Bits, Columns, i), p, low, high);
  }
}

/// Where the code of (row, column) of a unit goes: the word of its lane, and the bit.
struct CodePlace {
  int lane;
  int word;
  int bit;
};

template <int Bits, int Columns>
__host__ __device__ constexpr CodePlace code_place(int row, int column) {
  const int tile = row / 16, byte = row % 16 / 8, half = column % 2;
  const int lane = row % 8 * 4 + column % 8 / 2;
  if constexpr (Columns == 16 && Bits == 8) {
    return {lane, 2 * tile + byte, half * 16 + column / 8 * 8};
  } else if constexpr (Columns == 16) {
    constexpr int places = 4 / Bits;
    return {lane, tile / places, half * 16 + byte * 8 + (tile % places + column / 8 * places) * Bits};
  } else {
    constexpr int places = 8 / Bits;
    return {lane, tile / places, half * 16 + byte * 8 + tile % places * Bits};
  }
}

/// Where element (row, column) of a 16 x 16 tile of A lies among the tile's 256: a lane's four registers
/// follow each other.
__host__ __device__ constexpr int tile_element(int row, int column) {
  const int lane = row % 8 * 4 + column % 8 / 2, part = row / 8 + column / 8 * 2;
  return (lane * 4 + part) * 2 + column % 2;
}

}  // namespace squat::cuda
