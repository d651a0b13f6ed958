#pragma once

// Sums of values, weighted by attention probabilities, in the matrix units.
//
// Probabilities come as pairs of float16 with tokens in rows, as the scores' C has them. They become the
// B of the sums, 16 tokens a step, by a transposition in registers; their own sum is a tile whose A is
// all ones. Packed values:
//
//   output_c = sum_t p_t (zero_t + scale_t code_tc)
//
// Symmetric: zero_t = -scale_t middle. The weights w_t = p_t scale_t are rounded to float16; that their
// sum is taken of the rounded ones, by one more tile of ones, makes rounding errors of the weights
// errors of the values' deviations alone. So that small weights beside large ones keep their digits,
// scales are counted in a unit that none exceeds, times weight_range.
//
// Plain: scale and zero of every 32 channels, so that weights are made for each of these groups.

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/cuda/kernels/score_keys.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/exact_tiles.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"

namespace squat::cuda {

/// What scales are multiplied by at most: probabilities are 2^8 at most, and float16 ends at 65504.
inline constexpr float weight_range = 128.0f;

/// The output of a column tile: channels in rows of C.
template <int HeadDim, ValueCoding Values>
struct OutputSums {
  static constexpr int tiles = HeadDim / 16;
  static constexpr int constants = Values == ValueCoding::plain ? HeadDim / 32 : 1;

  float codes[tiles][4];         // of packed values in code_unit, of exact ones as they are
  float constant[constants][4];  // what every channel (of a group) gets, rows alike
  float weights[4];              // the sum of probabilities, rows alike
  float unit;                    // of the scales

  __device__ void clear() {
    for_each([](float &x) { x = 0; });
    unit = 0x1p-8f;  // weight_range / unit is a float16
  }
  /// Multiplies the sums of a lane's columns.
  __device__ void multiply(float first, float second) {
#pragma unroll
    for (int i = 0; i < tiles; ++i) multiply_tile(codes[i], first, second);
#pragma unroll
    for (int i = 0; i < constants; ++i) multiply_tile(constant[i], first, second);
    multiply_tile(weights, first, second);
  }
  /// Makes the unit at least `largest`, so that sums stay what they are. All lanes come here.
  __device__ void raise_unit(float largest) {
    if (!__any_sync(0xffffffffu, largest > unit)) return;
    for (int step = 1; step < warp_lanes; step *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    }
    const float least = unit_above(largest), factor = unit * inverse_of_power(least);
#pragma unroll
    for (int i = 0; i < tiles; ++i) multiply_tile(codes[i], factor, factor);
#pragma unroll
    for (int i = 0; i < constants; ++i) multiply_tile(constant[i], factor, factor);
    unit = least;
  }

 private:
  template <class Visit>
  __device__ void for_each(Visit &&visit) {
#pragma unroll
    for (int i = 0; i < tiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) visit(codes[i][j]);
    }
#pragma unroll
    for (int i = 0; i < constants; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) visit(constant[i][j]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) visit(weights[j]);
  }
  __device__ static void multiply_tile(float (&c)[4], float first, float second) {
    c[0] *= first, c[1] *= second, c[2] *= first, c[3] *= second;
  }
};

inline constexpr Word two_ones = 0x3c003c00u;

/// c += the sum of B's rows, in every row.
__device__ inline void add_rows(float (&c)[4], uint2 b) {
  multiply_add(c, two_ones, two_ones, two_ones, two_ones, b.x, b.y);
}

/// Weights of 16 tokens as B.
__device__ inline uint2 columns_of(TokenWeights p) { return {transpose(p.x), transpose(p.y)}; }

/// The larger magnitudes of pairs of float16.
__device__ inline __half2 larger(__half2 a, Word b) { return __hmax2(a, __habs2(as_halves(b))); }

/// sums += the values of a packed page, weighted by p, [token_tiles, lanes]. page: the head's page, of
/// which only the value part need be there; both in shared memory. A loop: it would be the largest code
/// of all.
template <class Layout, ValueCoding Values>
__device__ inline void sum_packed(const std::uint8_t *page, const TokenWeights *p,
                                  OutputSums<Layout::HeadDim, Values> &sums) {
  constexpr int channel_tiles = Layout::channel_tiles, groups = Layout::scales_of_a_value(Values);
  // A lane's scales: of tokens 2t, 2t + 1, 2t + 8, 2t + 9 of every 16.
  const auto scales = [&](int offset, int group, int step) {
    const auto *all = reinterpret_cast<const uint2 *>(page + offset + group * Layout::Group * 2);
    return all[lane_index() % 4 * Layout::token_tiles + step];
  };
  __half2 most = __float2half2_rn(0);
#pragma unroll
  for (int group = 0; group < groups; ++group) {
#pragma unroll
    for (int step = 0; step < Layout::token_tiles; ++step) {
      const uint2 scale = scales(Layout::value_scales, group, step);
      most = larger(larger(most, scale.x), scale.y);
      if constexpr (Values == ValueCoding::plain) {
        const uint2 zero = scales(Layout::value_zeros(Values), group, step);
        most = larger(larger(most, zero.x), zero.y);
      }
    }
  }
  sums.raise_unit(fmaxf(__low2float(most), __high2float(most)));
  const Word factor = as_word(__float2half2_rn(weight_range * inverse_of_power(sums.unit)));
#pragma unroll 1
  for (int step = 0; step < Layout::token_tiles; ++step) {
    const std::uint8_t *unit = page + Layout::value_codes + step * Layout::value_step_bytes;
    const uint2 columns = columns_of(p[step * warp_lanes + lane_index()]);
    add_rows(sums.weights, columns);
    const auto times = [&](uint2 scale) -> uint2 {
      return {multiply(columns.x, multiply(scale.x, factor)),
              multiply(columns.y, multiply(scale.y, factor))};
    };
    uint2 scaled[groups];
#pragma unroll
    for (int group = 0; group < groups; ++group) {
      scaled[group] = times(scales(Layout::value_scales, group, step));
      add_rows(sums.constant[group], Values == ValueCoding::symmetric
                                         ? scaled[group]
                                         : times(scales(Layout::value_zeros(Values), group, step)));
    }
    multiply_unit<Layout::ValueBits, 16, Layout::ValueBits>(
        sums.codes, unit, [&](int i) { return scaled[i * groups / channel_tiles]; });
  }
}

/// sums += a tile of 16 exact values, weighted by p.
template <class Tiles, int HeadDim, ValueCoding Values>
__device__ inline void sum_exact(const Tiles &values, TokenWeights p,
                                 OutputSums<HeadDim, Values> &sums) {
  const uint2 b = columns_of(p);
  add_rows(sums.weights, b);
#pragma unroll
  for (int i = 0; i < HeadDim / 16; ++i) {
    const uint4 a = values.halves(i);
    multiply_add(sums.codes[i], a.x, a.y, a.z, a.w, b.x, b.y);
  }
}

}  // namespace squat::cuda
