#pragma once

// Sums of values, weighted by attention probabilities, in the matrix units.
//
// Probabilities come as scores do, tokens in rows of C. They become the B of the sums, 16 tokens a step,
// by a transposition in registers. Packed values:
//
//   output_c = sum_t p_t (zero_t + scale_t code_tc)
//
// Symmetric: zero_t = -scale_t middle. The weights w_t = p_t scale_t are rounded to float16; that their
// sum is taken of the rounded ones, by one more tile whose A is all ones, makes rounding errors of the
// weights errors of the values' deviations alone. So that small probabilities beside large ones keep
// their digits, weights fill float16's range: p <= 1 and scale <= unit become at most 2^14.
//
// Plain: scale and zero of every 32 channels, so that weights are made for each of these groups.

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/cuda/exact_tiles.cuh"
#include "squat/cuda/fragments.cuh"
#include "squat/cuda/page_layout.cuh"
#include "squat/cuda/score_keys.cuh"
#include "squat/cuda/warp.cuh"

namespace squat::cuda {

inline constexpr float weight_range = 16384.0f;  // of float16's 65504

/// The output of a column tile: channels in rows of C.
template <int HeadDim, ValueCoding Values>
struct OutputSums {
  static constexpr int tiles = HeadDim / 16;
  static constexpr int constants = Values == ValueCoding::plain ? HeadDim / 32 : 1;

  float codes[tiles][4];         // of packed values in code_unit, of exact ones as they are
  float constant[constants][4];  // what every channel (of a group) gets, rows alike
  float unit;                    // of the weights

  __device__ void clear() {
    for_each([](float &x) { x = 0; });
    unit = 0x1p-24f;
  }
  /// Multiplies the sums of a lane's columns.
  __device__ void multiply(float first, float second) {
#pragma unroll
    for (int i = 0; i < tiles; ++i) multiply_tile(codes[i], first, second);
#pragma unroll
    for (int i = 0; i < constants; ++i) multiply_tile(constant[i], first, second);
  }
  /// Makes the unit at least `least`, so that sums stay what they are.
  __device__ void raise_unit(float least) {
    if (least <= unit) return;
    const float factor = unit * inverse_of_power(least);
    multiply(factor, factor);
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
  }
  __device__ static void multiply_tile(float (&c)[4], float first, float second) {
    c[0] *= first, c[1] *= second, c[2] *= first, c[3] *= second;
  }
};

/// B of 16 tokens from a tile of weights with tokens in rows: row g's times `low`, row g + 8's times
/// `high`.
__device__ inline uint2 weights_of(const float (&p)[4], float low, float high) {
  return {transpose(halves(p[0] * low, p[1] * low)), transpose(halves(p[2] * high, p[3] * high))};
}

inline constexpr Word two_ones = 0x3c003c00u;

/// One step of plain values: every two tiles of channels have weights of their own.
template <int Bits, int HeadDim, class Weights>
__device__ inline void sum_plain_plane(const std::uint8_t *plane, float factor, Weights &&weights,
                                       OutputSums<HeadDim, ValueCoding::plain> &sums) {
  constexpr int tiles = HeadDim / 16, places = tile_places(Bits, 16);
  Word words[unit_words(Bits, tiles, 16)];
  load_words(plane, words);
#pragma unroll
  for (int i = 0; i < tiles; ++i) {
    const uint2 b = weights(i / 2);
    const int p = i % places;
    multiply_tile<Bits>(sums.codes[i], words, i, scale_low<Bits>(multiply(b.x, factor), p),
                        scale_high<Bits>(multiply(b.y, factor), p));
  }
}

/// sums += the values of a packed page, weighted by p. values: the head's value part in shared memory.
template <class Layout, ValueCoding Values>
__device__ inline void sum_packed(const std::uint8_t *page, const float (&p)[Layout::token_tiles][4],
                                  OutputSums<Layout::HeadDim, Values> &sums) {
  constexpr int token_tiles = Layout::token_tiles, channel_tiles = Layout::channel_tiles;
  const int g = lane_index() / 4;
  // A lane's scales: of tokens g and g + 8 of every tile.
  const auto scale_pairs = [&](int offset, int group) {
    return reinterpret_cast<const Word *>(page + offset + group * Layout::Group * 2) + g * token_tiles;
  };
  float largest = 0;
#pragma unroll
  for (int group = 0; group < Layout::scales_of_a_value(Values); ++group) {
#pragma unroll
    for (int i = 0; i < token_tiles; ++i) {
      const float2 scale = __half22float2(as_halves(scale_pairs(Layout::value_scales, group)[i]));
      largest = fmaxf(largest, fmaxf(scale.x, scale.y));
      if constexpr (Values == ValueCoding::plain) {
        const float2 zero =
            __half22float2(as_halves(scale_pairs(Layout::value_zeros(Values), group)[i]));
        largest = fmaxf(largest, fmaxf(fabsf(zero.x), fabsf(zero.y)));
      }
    }
  }
  sums.raise_unit(unit_above(largest_row(largest)));
  const float factor = weight_range * inverse_of_power(sums.unit);
#pragma unroll
  for (int step = 0; step < token_tiles; ++step) {
    const std::uint8_t *unit = page + Layout::value_codes + step * Layout::value_step_bytes;
    const auto weights = [&](int offset, int group) {
      const float2 scale = __half22float2(as_halves(scale_pairs(offset, group)[step]));
      return weights_of(p[step], scale.x * factor, scale.y * factor);
    };
    if constexpr (Values == ValueCoding::symmetric) {
      const uint2 b = weights(Layout::value_scales, 0);
      multiply_add(sums.constant[0], two_ones, two_ones, two_ones, two_ones, b.x, b.y);
      multiply_unit<Layout::ValueBits, 16>(sums.codes, unit, b.x, b.y);
    } else {
      uint2 scaled[Layout::HeadDim / 32];
#pragma unroll
      for (int group = 0; group < Layout::HeadDim / 32; ++group) {
        scaled[group] = weights(Layout::value_scales, group);
        const uint2 zeros = weights(Layout::value_zeros(Values), group);
        multiply_add(sums.constant[group], two_ones, two_ones, two_ones, two_ones, zeros.x, zeros.y);
      }
      const auto of_group = [&](int group) { return scaled[group]; };
      if constexpr (Layout::ValueBits == 3) {
        sum_plain_plane<2>(unit, 1.0f, of_group, sums);
        sum_plain_plane<1>(unit + Layout::plane_bytes(2, channel_tiles, 16), 4.0f, of_group, sums);
      } else {
        sum_plain_plane<Layout::ValueBits>(unit, 1.0f, of_group, sums);
      }
    }
  }
  static_assert(channel_tiles % 2 == 0);
}

/// sums += a tile of 16 exact values, weighted by p.
template <class T, int HeadDim, ValueCoding Values>
__device__ inline void sum_exact(const ExactTile<T> *values, const float (&p)[4],
                                 OutputSums<HeadDim, Values> &sums) {
  constexpr int tiles = HeadDim / 16;
  ExactTile<T> loaded[tiles];
#pragma unroll
  for (int i = 0; i < tiles; ++i) loaded[i].words = __ldg(&values[i * warp_lanes + lane_index()].words);
  const uint2 b = weights_of(p, weight_range, weight_range);
#pragma unroll
  for (int i = 0; i < tiles; ++i) {
    const uint4 a = loaded[i].halves();
    multiply_add(sums.codes[i], a.x, a.y, a.z, a.w, b.x, b.y);
  }
}

}  // namespace squat::cuda
