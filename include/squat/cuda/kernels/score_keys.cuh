#pragma once

// Scores of a column tile of queries against 16-token tiles of keys, in the matrix units.
//
// Packed (a page's codes in shared memory):
//
//   score = sum_c q_c (zero_c + scale_c code_c) + q . R(row) mean
//
// The scale folds into the query, two channels a multiplication; codes are elements of A as they lie
// there (fragments.cuh). The zeros are the A of one tile more, all of whose rows are alike: what it
// gives is the same for every token. The mean key's scores are a product of rank 16 mode_tiles
// (MeanModes).

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/cuda/kernels/query_sets.cuh"
#include "squat/cuda/kernels/transform_queries.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/exact_tiles.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Reads a lane's words of a unit from shared memory.
template <int Words>
__device__ inline void load_words(const std::uint8_t *unit, Word (&words)[Words]) {
  const int lane = lane_index();
  if constexpr (Words % 4 == 0) {
#pragma unroll
    for (int i = 0; i < Words; i += 4) {
      const uint4 four = reinterpret_cast<const uint4 *>(unit)[i / 4 * warp_lanes + lane];
      words[i] = four.x, words[i + 1] = four.y, words[i + 2] = four.z, words[i + 3] = four.w;
    }
  } else if constexpr (Words == 2) {
    const uint2 two = reinterpret_cast<const uint2 *>(unit)[lane];
    words[0] = two.x, words[1] = two.y;
  } else {
#pragma unroll
    for (int i = 0; i < Words; ++i) words[i] = reinterpret_cast<const Word *>(unit)[lane * Words + i];
  }
}

/// C[i] += 2^-24 tile_factor<Common>(i) times the codes of tile i of a unit times b(i).
template <int Bits, int Columns, int Common, int Tiles, class B>
__device__ inline void multiply_unit(float (&c)[Tiles][4], const std::uint8_t *unit, B &&b) {
  if constexpr (Bits == 3) {
    multiply_unit<2, Columns, Common>(c, unit, b);
    constexpr int low_bytes = unit_words(2, Tiles, Columns) * 4 * warp_lanes;
    multiply_unit<1, Columns, Common>(c, unit + low_bytes, [&](int i) -> uint2 {
      const uint2 low = b(i);
      return {multiply(low.x, 4.0f), multiply(low.y, 4.0f)};
    });
  } else {
    Word words[unit_words(Bits, Tiles, Columns)];
    load_words(unit, words);
    multiply_codes_by<Bits, Columns, Common>(c, words, b);
  }
}

/// Whether a head's keys, in shared memory, are coordinates in the basis: the sign of the first scale
/// says so.
template <class Layout>
__device__ inline bool in_basis(const std::uint8_t *keys) {
  return (*reinterpret_cast<const std::uint16_t *>(keys + Layout::key_scales) & 0x8000u) != 0;
}

/// c = the scores of a packed page's keys, less the factors that it returns: what a lane's columns have
/// to be multiplied by. keys: the head's key part, set: the queries that face it, both in shared memory;
/// row: of the page in its tile.
template <class Layout>
__device__ inline float2 score_packed(const std::uint8_t *keys, const QuerySet<Layout::HeadDim> &set,
                                      const HeadTables &head, const TileTables &tiles, int row,
                                      float (&c)[Layout::token_tiles][4]) {
  constexpr int steps = Layout::HeadDim / 16;
  const int t = lane_index() % 4;
  const auto *scales = reinterpret_cast<const uint2 *>(keys + Layout::key_scales) + t * steps;
  const auto *zeros = reinterpret_cast<const uint2 *>(keys + Layout::key_zeros) + t * steps;
  const uint2 *q = set.facing + lane_index();
  float zero_scores[2][4] = {};  // two, which need not wait for each other
#pragma unroll 2
  for (int step = 0; step < steps; ++step) {
    const uint2 zero = zeros[step], b = q[step * warp_lanes];
    multiply_add(zero_scores[step % 2], zero.x, zero.x, zero.y, zero.y, b.x, b.y);
  }
#pragma unroll
  for (int i = 0; i < Layout::token_tiles; ++i) c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0;
  const std::uint8_t *unit = keys;
  int next = 0;
  const auto multiply_run = [&]<int Bits>(int units) {
#pragma unroll 1
    for (const int end = next + units; next < end; ++next, unit += Layout::key_unit_bytes(Bits)) {
      const int step = next * Layout::unit / 16;
      const uint2 b = q[step * warp_lanes], scale = scales[step];
      uint2 scaled = {multiply(b.x, scale.x & 0x7fff7fffu), multiply(b.y, scale.y & 0x7fff7fffu)};
      if (Layout::unit == 8 && next % 2 != 0) scaled.x = scaled.y;
      multiply_unit<Bits, Layout::unit, Layout::KeyBits>(c, unit, [&](int) { return scaled; });
    }
  };
  const bool basis = in_basis<Layout>(keys);
  if (basis) {
    multiply_run.template operator()<8>(head.eight_bit_units);
    multiply_run.template operator()<4>(head.four_bit_units);
    multiply_run.template operator()<2>(head.two_bit_units);
  } else {
    multiply_run.template operator()<Layout::KeyBits>(Layout::key_units);
  }
  const bool has_mean = head.projection != nullptr;
  const float2 basis_units = reinterpret_cast<const float2 *>(set.basis_units)[t];
  const float2 units = reinterpret_cast<const float2 *>(set.units)[t];
  float factors[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float basis_unit = !basis ? 1.0f : i == 0 ? basis_units.x : basis_units.y;
    factors[i] = has_mean ? head.projection_unit : basis_unit;
    const float to_factor = basis_unit * inverse_of_power(factors[i]);
    const float code_factor = code_unit * to_factor;
    const float zero = (zero_scores[0][i] + zero_scores[1][i]) * to_factor;
#pragma unroll
    for (int tile = 0; tile < Layout::token_tiles; ++tile) {
      const float own = code_factor / tile_factor<Layout::KeyBits>(tile);
      c[tile][i] = c[tile][i] * own + zero;
      c[tile][i + 2] = c[tile][i + 2] * own + zero;
    }
  }
  if (has_mean) {
    const int row_tiles = tiles.frame / 16;
    const uint4 *rows = tiles.mode_rows + row / 16 * warp_lanes + lane_index();
#pragma unroll 1
    for (int mode = 0; mode < tiles.mode_tiles; ++mode, rows += row_tiles * warp_lanes) {
      const uint2 b = set.modes[mode * warp_lanes + lane_index()];
#pragma unroll
      for (int tile = 0; tile < Layout::token_tiles; ++tile) {
        const uint4 a = __ldg(rows + tile * warp_lanes);
        multiply_add(c[tile], a.x, a.y, a.z, a.w, b.x, b.y);
      }
    }
  }
  return {factors[0] * units.x, factors[1] * units.y};
}

/// c = the scores of a tile of 16 exact keys, in queries' units.
template <class Tiles, int HeadDim>
__device__ inline void score_exact(const Tiles &keys, const Queries<HeadDim> &queries, float (&c)[4]) {
  c[0] = c[1] = c[2] = c[3] = 0;
#pragma unroll
  for (int step = 0; step < HeadDim / 16; ++step) {
    const uint4 a = keys.halves(step);
    const uint2 q = queries.turned(step);
    multiply_add(c, a.x, a.y, a.z, a.w, q.x, q.y);
  }
}

}  // namespace squat::cuda
