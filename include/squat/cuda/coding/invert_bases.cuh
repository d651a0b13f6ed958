#pragma once

// What kernels read of rounded bases, worked out on the device, a block a head.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/cuda/coding/block_inverse.cuh"
#include "squat/cuda/coding/column_quarter.cuh"
#include "squat/cuda/coding/learnt_basis.cuh"
#include "squat/cuda/error.hpp"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

template <int HeadDim>
struct InvertCall {
  const LearntBasis<HeadDim> *bases;  ///< [kv_heads], their rounded matrices
  const HeadTables *heads;            ///< [kv_heads]; a basis and to_basis become theirs
  bool bytes;                         ///< matrices are of bytes, else of words
};

/// Makes HeadTables::basis, the rounded A^-T, and to_basis, its inverse transpose, of heads that have
/// them. Tables are to be read from, but by this kernel, which comes before all that read them. Grid: KV
/// heads.
template <int HeadDim>
__global__ void __launch_bounds__(ColumnQuarter<HeadDim>::threads)
    invert_bases(const __grid_constant__ InvertCall<HeadDim> call) {
  __shared__ InverseMemory<HeadDim> memory;
  const HeadTables &head = call.heads[blockIdx.x];
  const LearntBasis<HeadDim> &basis = call.bases[blockIdx.x];
  if (head.basis == nullptr) return;
  auto *tiles = reinterpret_cast<__half2 *>(const_cast<uint4 *>(head.basis));
  auto *to_basis = const_cast<float *>(head.to_basis);
  ColumnQuarter<HeadDim> x;  // A^-1: rows are channels, columns coordinates
  const int coordinate = x.column();
  const float scale = basis.scales[coordinate];
  const auto *codes = reinterpret_cast<const short4 *>(basis.codes + coordinate * HeadDim);
#pragma unroll
  for (int n = 0; n < x.quads; ++n) {
    const short4 of_quad = codes[x.row(n) / 4];
    const float entries[] = {static_cast<float>(of_quad.x), static_cast<float>(of_quad.y),
                             static_cast<float>(of_quad.z), static_cast<float>(of_quad.w)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      element(x.x[n], i) = call.bytes ? (entries[i] - 127.5f) * scale * basis.input_scales[x.row(n) + i]
                                      : entries[i] * scale;
    }
    const int tile = coordinate / 16 * (HeadDim / 16) + x.row(n) / 16;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      tiles[(tile * 256 + tile_element(coordinate % 16, x.row(n) % 16 + i)) / 2] =
          __floats2half2_rn(element(x.x[n], i), element(x.x[n], i + 1));
    }
  }
  const int channel = invert(x, memory);
#pragma unroll
  for (int n = 0; n < x.quads; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      to_basis[memory.order[x.row(n) + i] * HeadDim + channel] = element(x.x[n], i);
  }
}

template <int HeadDim>
void launch_invert_bases(const InvertCall<HeadDim> &call, int kv_heads, cudaStream_t stream) {
  invert_bases<HeadDim>
      <<<static_cast<unsigned>(kv_heads), ColumnQuarter<HeadDim>::threads, 0, stream>>>(call);
  check(cudaGetLastError(), "inversion of bases");
}

}  // namespace squat::cuda
