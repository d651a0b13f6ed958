#pragma once

// The inverse of a matrix, by a block.

#include <cuda_runtime.h>

#include "squat/cuda/coding/column_quarter.cuh"
#include "squat/cuda/kernels/warp.cuh"

namespace squat::cuda {

/// What the threads leave to one another in shared memory.
template <int Size>
struct alignas(16) InverseMemory {
  float pivot[Size];        ///< the column of the pivot, divided by it
  unsigned best[Size / 8];  ///< of a warp's columns
  int order[Size];          ///< column of the pivot in each row
};

/// Gauss and Jordan's elimination with column pivots: invert() with rows and columns in each other's
/// places, and nobody is swapped. Element (order[i], k) of the inverse becomes x(i, order[k]). Returns
/// k of the thread's column. A pivot is the largest but for a part in 2^15, for the bits below hold
/// its column's number.
template <int Size>
__device__ inline int invert(ColumnQuarter<Size> &x, InverseMemory<Size> &memory) {
  constexpr unsigned numbers = 0xff, is_left = 0x80;
  static_assert(Size <= is_left && x.threads / warp_lanes == Size / 8);
  const int column = x.column(), first_lane = lane_index() / x.lanes * x.lanes;
  int own_row = -1;
#pragma unroll 1
  for (int quad = 0; quad < x.quads; ++quad) {
#pragma unroll 1
    for (int owner = 0; owner < x.lanes; ++owner) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 4 * (owner + x.lanes * quad) + i;
        float &of_row = element(x.x[0], i);  // of the owner
        const float entry = __shfl_sync(0xffffffffu, of_row, first_lane + owner);
        unsigned key = 0;
        if (own_row < 0) {
          key = (__float_as_uint(fabsf(entry)) & ~numbers) | is_left | static_cast<unsigned>(column);
        }
        key = __reduce_max_sync(0xffffffffu, key);
        if (lane_index() == 0) memory.best[warp_index()] = key;
        __syncthreads();
        key = __reduce_max_sync(0xffffffffu, memory.best[lane_index() % (Size / 8)]);
        const bool is_pivot = static_cast<unsigned>(column) == (key & ~is_left & numbers);
        // The row that leaves makes room for one of the inverse.
        if (x.part() == owner) of_row = is_pivot ? 1 : 0;
        if (is_pivot) {
          const float inverse = 1 / entry;
#pragma unroll
          for (int n = 0; n < x.quads; ++n) {
            const float4 y = x.x[n];
            x.x[n] = {y.x * inverse, y.y * inverse, y.z * inverse, y.w * inverse};
            x.of(memory.pivot, n) = x.x[n];
          }
          if (x.part() == 0) memory.order[row] = column;
          own_row = row;
        }
        __syncthreads();
        if (is_pivot) continue;
#pragma unroll
        for (int n = 0; n < x.quads; ++n) add_scaled(x.x[n], -entry, x.of(memory.pivot, n));
      }
    }
    // The next rows come to the front, and in the end all are where they were.
    const float4 front = x.x[0];
#pragma unroll
    for (int n = 1; n < x.quads; ++n) x.x[n - 1] = x.x[n];
    x.x[x.quads - 1] = front;
  }
  __syncthreads();
  return own_row;
}

}  // namespace squat::cuda
