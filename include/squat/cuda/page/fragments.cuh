#pragma once

// Matrix fragments of a warp.
//
// mma.sync multiplies a 16 x 16 matrix A of float16 by a 16 x 8 matrix B and adds to a 16 x 8 matrix C
// of float. Lane l of the warp, g = l / 4, t = l % 4, holds
//
//   A: a0 = (row g, columns 2t, 2t+1), a1 = (row g+8, same), a2, a3 = the same rows, columns 2t+8, 2t+9
//   B: b0 = (rows 2t, 2t+1, column g), b1 = (rows 2t+8, 2t+9, column g)
//   C: c0, c1 = (row g, columns 2t, 2t+1), c2, c3 = (row g+8, same columns)
//
// Exact keys and values lie in memory as such tiles of A (tile_element()). Where codes lie, and which
// registers they become, code_places.cuh says.

#include <cuda_fp16.h>

#include <cstdint>

namespace squat::cuda {

inline constexpr int warp_lanes = 32;

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) % warp_lanes; }

__device__ inline int warp_index() { return static_cast<int>(threadIdx.x) / warp_lanes; }

using Word = std::uint32_t;

inline constexpr Word two_ones = 0x3c003c00u;  // of float16

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

/// An 8 x 8 matrix of float16, lane l holding (row g, columns 2t, 2t+1), transposed.
__device__ inline Word transpose(Word x) {
  Word y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

/// Where a lane's row is of four 8 x 8 matrices of float16 that follow each other in shared memory, for
/// the two below.
__device__ inline std::uint32_t matrix_row(const std::uint8_t *matrices) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(matrices)) +
         static_cast<std::uint32_t>(lane_index()) * 16;
}

/// Four such matrices, of which a lane has (row g, columns 2t, 2t+1), transposed, to shared memory.
__device__ inline void store_transposed(std::uint32_t row, const Word (&x)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
               : "memory");
#else
  const std::uint32_t word = row - static_cast<std::uint32_t>(lane_index()) * 12;
#pragma unroll
  for (unsigned i = 0; i < 4; ++i) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(word + 128 * i), "r"(transpose(x[i])) : "memory");
  }
#endif
}

/// And back, as they lie there.
__device__ inline uint4 load_matrices(std::uint32_t row) {
  uint4 x;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(row)
               : "memory");
  return x;
}

/// Four 8 x 8 matrices, transposed, of which each lane names a row of one: lanes 0 to 7 those of the
/// first, and so on.
__device__ inline uint4 load_transposed(std::uint32_t row) {
  uint4 x;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(row)
               : "memory");
  return x;
}

__device__ inline Word as_word(__half2 x) { return *reinterpret_cast<Word *>(&x); }
__device__ inline __half2 as_halves(Word x) { return *reinterpret_cast<__half2 *>(&x); }
__device__ inline Word halves(float low, float high) { return as_word(__floats2half2_rn(low, high)); }

/// Where element (row, column) of a 16 x 16 tile of A lies among the tile's 256: a lane's four registers
/// follow each other.
__host__ __device__ constexpr int tile_element(int row, int column) {
  const int lane = row % 8 * 4 + column % 8 / 2, part = row / 8 + column / 8 * 2;
  return (lane * 4 + part) * 2 + column % 2;
}

}  // namespace squat::cuda
