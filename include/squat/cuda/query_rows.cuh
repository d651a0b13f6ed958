#pragma once

// A warp's query rows in shared memory, as A of the scores (fragments.cuh): rows = query rows, columns =
// channels, [16-row tile, HeadDim / 16] tiles.
//
// As in transform_queries.cuh each row is divided by a power of two, its unit, so that float16 holds it:
// q * attention scale * log2 e = unit * stored. Rows face exact keys of one base: they are turned back by
// it. 2 HeadDim bytes a row; a row is read once, twice where it is turned.

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/cuda/device_state.cuh"
#include "squat/cuda/fragments.cuh"
#include "squat/cuda/rotary.cuh"
#include "squat/cuda/warp.cuh"

namespace squat::cuda {

/// A lane's channels, pairs lane + 32 i, and what turns them: x' = cosine x + sine * partner.
template <int HeadDim>
struct ChannelTurns {
  static constexpr int count = (HeadDim / 2 + warp_lanes - 1) / warp_lanes;

  int partner[count][2];
  float cosine[count][2], sine[count][2];

  __device__ static int channel(int i) { return 2 * (lane_index() + i * warp_lanes); }
  __device__ static bool has(int i) { return channel(i) < HeadDim; }

  /// By `position`.
  __device__ ChannelTurns(const TileTables &tables, long long position) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int at = channel(i) + j;
        partner[i][j] = at;
        cosine[i][j] = 1;
        sine[i][j] = 0;
        if (position == 0 || at >= 2 * tables.pairs) continue;
        const int pair = tables.interleaved ? at / 2 : at % tables.pairs;
        const int2 channels = pair_channels(tables, pair);
        const float2 angle = turn_angle(tables, pair, position);
        const bool first = at == channels.x;
        partner[i][j] = first ? channels.y : channels.x;
        cosine[i][j] = angle.x;
        sine[i][j] = first ? -angle.y : angle.y;
      }
    }
  }
};

/// Writes the rows of a warp, `Tiles` tiles of 16, turned back by `base`; row(i) is where row i stands,
/// null for none. units: of the lane's rows, g + 8 i. `Together` rows are read at a time.
template <int HeadDim, int Tiles, int Together, class Element, class Row>
__device__ inline void face_rows(uint4 *to, const TileTables &tables, long long base, float scale,
                                 float (&units)[2 * Tiles], Row &&row) {
  using Turns = ChannelTurns<HeadDim>;
  const Turns turns(tables, -base);
  const int g = lane_index() / 4;
  __syncwarp();
#pragma unroll
  for (int eight = 0; eight < 2 * Tiles; ++eight) {
#pragma unroll 1
    for (int first = 0; first < 8; first += Together) {
      float x[Together][Turns::count][2], largest[Together];
#pragma unroll
      for (int k = 0; k < Together; ++k) {
        const Element *query = row(eight * 8 + first + k);
        largest[k] = 0;
#pragma unroll
        for (int i = 0; i < Turns::count; ++i) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            x[k][i][j] = 0;
            if (query == nullptr || !Turns::has(i)) continue;
            const float own = static_cast<float>(query[Turns::channel(i) + j]) * scale;
            x[k][i][j] = own;
            largest[k] = fmaxf(largest[k], fabsf(own));
            if (base == 0) continue;
            x[k][i][j] = own * turns.cosine[i][j] +
                         static_cast<float>(query[turns.partner[i][j]]) * scale * turns.sine[i][j];
          }
        }
      }
#pragma unroll
      for (int k = 0; k < Together; ++k) {
        for (int step = 1; step < warp_lanes; step *= 2) {
          largest[k] = fmaxf(largest[k], __shfl_xor_sync(0xffffffffu, largest[k], step));
        }
        const float unit = unit_above(largest[k]), inverse = inverse_of_power(unit);
        const int at = first + k;  // of eight rows
        if (at == g) units[eight] = unit;
#pragma unroll
        for (int i = 0; i < Turns::count; ++i) {
          if (!Turns::has(i)) continue;
          const int channel = Turns::channel(i);
          const int element = ((eight / 2) * (HeadDim / 16) + channel / 16) * 256 +
                              tile_element(at + eight % 2 * 8, channel % 16);
          reinterpret_cast<Word *>(to)[element / 2] =
              halves(x[k][i][0] * inverse, x[k][i][1] * inverse);
        }
      }
    }
  }
  __syncwarp();
}

}  // namespace squat::cuda
