#pragma once

// Products of codes and quantised numbers in the matrix units: mma.sync.m16n8k32 of bytes, sums in int.
//
// A is 16 x 32 bytes of codes: lane (g, t) has a0 = (row g, columns 4t ... 4t+3), a1 = (row g + 8, the
// same), a2, a3 = the same rows, columns 16 on. B is 32 x 8: b0 = (rows 4t ... 4t+3, column g), b1 =
// rows 16 on. Which channel or token a column of A stands for is up to the page (code_places.cuh), as
// long as B agrees.
//
// A number x of 16 bits is two columns of B, x = 256 high + low, so that eight columns are four of 16
// bits: columns 2i and 2i + 1 of C are what their high and low bytes come to.

#include <cstdint>

#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// C += A B of unsigned codes and signed bytes.
__device__ inline void multiply_add_signed(int (&c)[4], Word a0, Word a1, Word a2, Word a3, Word b0,
                                           Word b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
/// The same of 16 columns.
__device__ inline void multiply_add_signed(int (&c)[4], Word a0, Word a1, Word b) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
}
/// C += A B of unsigned bytes.
__device__ inline void multiply_add_unsigned(int (&c)[4], Word a0, Word a1, Word a2, Word a3, Word b0,
                                             Word b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// A float this far from zero, 1.5 2^23, has an integer of up to 22 bits and a sign in its low bits.
inline constexpr float float_start = 12582912.0f;

/// The bytes of two 16-bit integers: high of both, then low of both; the integers are low bits of floats
/// that float_start was added to.
__device__ inline Word split_bytes(float first, float second) {
  return __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x4051);
}

/// Half the width of the integers that queries are quantised to: a little is left for rounding.
inline constexpr float query_range = 32500.0f;

/// Two numbers, times `by` at most query_range, as signed bytes: x = 256 high + low, low from -128 to
/// 127.
__device__ inline Word query_bytes(float first, float second, float by) {
  constexpr float start = float_start + 128;
  return split_bytes(fmaf(first, by, start), fmaf(second, by, start)) ^ 0x80800000u;
}

}  // namespace squat::cuda
