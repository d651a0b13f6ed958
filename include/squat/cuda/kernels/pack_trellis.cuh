#pragma once

// Rows of trellis codes into a page: a warp finds the codes of two rows at a time (trellis_search.cuh),
// a channel's tokens of keys or a token's values, and adds them to an image of the page's bytes in
// shared memory. No two lanes have codes of one byte at a time.

#include <cstdint>

#include "squat/coding/coding.hpp"
#include "squat/coding/trellis.hpp"
#include "squat/cuda/kernels/quantize_affine.cuh"
#include "squat/cuda/kernels/trellis_search.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"

namespace squat::cuda {

/// Shared memory of a warp that codes two rows of `Count` numbers.
template <int Count>
struct alignas(16) CodedRows {
  float x[2][Count];
  Word scratch[trellis_scratch_words<Count>];
  std::uint8_t codes[2][Count];

  /// Codes both, by a warp, a half of which gets what its row's codes stand for; begins and ends with
  /// barriers of it. Not inlined: a search is long, and kernels name it many times.
  template <int Bits, bool AboutMean>
  __device__ __noinline__ TrellisFit code() {
    const int row = lane_index() / half_warp;
    __syncwarp();
    const TrellisFit fit = quantize_two_trellises<Bits, Count, AboutMean>(x[row], codes[row], scratch);
    __syncwarp();
    return fit;
  }
};

/// What the 16 channels, or coordinates, of a warp are as trellis codes.
template <class Layout>
struct alignas(16) TrellisChannels {
  static constexpr int Group = Layout::Group, units = 16 / Layout::unit;
  static constexpr int unit_bytes = Layout::key_unit_bytes(most_trellis_bits);

  CodedRows<Group> rows;
  std::uint8_t image[units * unit_bytes];

  __device__ void clear() {
#pragma unroll 1
    for (int i = lane_index(); i < units * unit_bytes / 4; i += warp_lanes)
      reinterpret_cast<Word *>(image)[i] = 0;
  }

  /// Codes the rows as columns `column` and `column` + 2 of 16, of `bits` bits; a half of the warp gets
  /// what its row's codes stand for.
  __device__ TrellisFit code(int bits, int column) {
    if constexpr (Layout::shares_bits) {
      if (bits == 1) return code<1>(column);
      if (bits == 3) return code<3>(column);
    }
    return code<2>(column);
  }

  /// Copies unit `index` of the 16 channels to a page; by the warp.
  __device__ void store(int index, int bits, std::uint8_t *unit) const {
    const auto *from = reinterpret_cast<const uint2 *>(image + index * unit_bytes);
#pragma unroll 1
    for (int i = lane_index(); i < Layout::key_unit_bytes(bits) / 8; i += warp_lanes)
      reinterpret_cast<uint2 *>(unit)[i] = from[i];
  }

 private:
  template <int Bits>
  __device__ TrellisFit code(int column) {
    const TrellisFit fit = rows.template code<Bits, true>();
    std::uint8_t *unit = image + column / Layout::unit * unit_bytes;
#pragma unroll 1
    for (int i = lane_index() * 4; i < 2 * Group; i += warp_lanes * 4) {
      const int row = i / Group, of_unit = (column + 2 * row) % Layout::unit;
      for (int token = i % Group; token < i % Group + 4; ++token) {
        add_code(unit, Layout::key_places(Codes::trellis, Bits, token, of_unit), rows.codes[row][token]);
      }
    }
    return fit;
  }
};

/// What the values of a block's warps, 16 tokens each, are as codes of up to 4 bits, trellis codes or,
/// of 4 bits, scalar ones.
template <class Layout>
struct alignas(16) CodedValues {
  static constexpr int HeadDim = Layout::HeadDim, warps = Layout::token_tiles;

  CodedRows<HeadDim> of_warps[warps];
  std::uint8_t image[Layout::Group / 32 * Layout::value_slice_bytes(4)];

  __device__ CodedRows<HeadDim> &rows() { return of_warps[threadIdx.x / warp_lanes]; }

  /// By a block; ends with a barrier.
  __device__ void clear(int bits) {
    const int words = Layout::Group / 32 * Layout::value_slice_bytes(bits) / 4;
    for (int i = static_cast<int>(threadIdx.x); i < words; i += static_cast<int>(blockDim.x))
      reinterpret_cast<Word *>(image)[i] = 0;
    __syncthreads();
  }

  /// Adds the codes of the warp's rows, of tokens `token` and `token` + 2 of the page.
  template <int Bits>
  __device__ void add(int token) {
#pragma unroll 1
    for (int row = 0; row < 2; ++row) {
#pragma unroll 1
      for (int first = lane_index() * 4; first < HeadDim; first += warp_lanes * 4) {
        for (int channel = first; channel < first + 4; ++channel) {
          add_code(image,
                   Layout::value_places(Layout::value_codes_of(Bits), Bits, channel, token + 2 * row),
                   rows().codes[row][channel]);
        }
      }
      __syncwarp();
    }
  }

  /// Copies all to a page, by a block, which begins with a barrier.
  __device__ void store(int bits, std::uint8_t *values) const {
    __syncthreads();
    const int pieces = Layout::Group / 32 * Layout::value_slice_bytes(bits) / 16;
    for (int i = static_cast<int>(threadIdx.x); i < pieces; i += static_cast<int>(blockDim.x))
      reinterpret_cast<uint4 *>(values)[i] = reinterpret_cast<const uint4 *>(image)[i];
  }
};

}  // namespace squat::cuda
