#pragma once

// Query rows in shared memory, as B of the scores: rows = channels, columns = query rows.
//
// Each row is divided by a power of two, its unit, so that float16 holds it:
// q * attention scale * log2 e = unit * stored. Rows face exact keys of one base: they are turned back
// by it. 2 HeadDim bytes a row; a row is read once, twice where it is turned.

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/cuda/kernels/attend_call.cuh"
#include "squat/cuda/kernels/rotary.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/kernels/warpgroup_products.cuh"
#include "squat/cuda/page/exact_tiles.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// A lane's channels, pairs lane + 32 i, and what turns them: x' = cosine x + sine * partner.
template <int HeadDim>
struct ChannelTurns {
  static constexpr int count = (HeadDim / 2 + warp_lanes - 1) / warp_lanes;

  int partner[count][2];
  float cosine[count][2], sine[count][2];

  __device__ static int channel(int i) { return 2 * (lane_index() + i * warp_lanes); }
  __device__ static bool has(int i) { return channel(i) < HeadDim; }

  /// By `position`; not 0, for which they are left as they are.
  __device__ ChannelTurns(const TileTables &tables, long long position) {
    if (position == 0) return;
#pragma unroll
    for (int i = 0; i < count; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int at = channel(i) + j;
        partner[i][j] = at;
        cosine[i][j] = 1;
        sine[i][j] = 0;
        if (at >= 2 * tables.pairs) continue;
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

/// Where the query rows of an entry and KV head stand: `heads` of each token.
template <class Element>
struct QueryRows {
  const Element *first;  // of the entry and KV head
  long long token_stride, head_stride;
  int heads;
  int count;
  float scale;

  /// Null for none.
  __device__ const Element *row(int i) const {
    return i < count ? first + i / heads * token_stride + i % heads * head_stride : nullptr;
  }
};

/// Those of an entry and KV head of a call.
template <class S>
__device__ inline QueryRows<DeviceElementOf<S>> query_rows(const AttendCall<S> &call,
                                                           const BatchEntry &entry, int head) {
  using Element = DeviceElementOf<S>;
  const int heads = call.heads_per_kv_head;
  return {reinterpret_cast<const Element *>(call.q.row(entry.first_row, head * heads)),
          call.q.token_stride,
          call.q.head_stride,
          heads,
          call.rows(entry),
          call.scale};
}

/// Where a query row's channel lies among the numbers of a warp that multiplies for itself:
/// [16 query rows, HeadDim / 16] tiles of two products, of which a lane has b0, b1 of query rows 0 to 7,
/// then b0, b1 of rows 8 to 15.
template <int HeadDim>
struct OwnQueries {
  __device__ static constexpr int element(int row, int channel) {
    const int lane = row % 8 * 4 + channel % 8 / 2, part = row % 16 / 8 * 2 + channel % 16 / 8;
    return (row / 16 * (HeadDim / 16) + channel / 16) * 256 + (lane * 4 + part) * 2 + channel % 2;
  }
};
/// Among those of `Rows` query rows that all warps meet (warpgroup_products.cuh), steps of 16 channels.
template <int Rows>
struct SharedQueries {
  __device__ static constexpr int element(int row, int channel) {
    return channel / 16 * (operand_step_bytes(Rows) / 2) + operand_element(channel % 16, row);
  }
};

/// Writes `Tiles` tiles of 16 rows, those from `first` on, turned back by `base`, and their units; to:
/// where the first of them begins. A function that is called: it runs once or twice a segment, and
/// inlined its code would come from memory in front of each loop.
template <class Places, int HeadDim, int Tiles, class Element>
__device__ __noinline__ void face_rows(uint4 *to, float *units, const QueryRows<Element> &rows,
                                       int first, const TileTables *tables, long long base) {
  using Turns = ChannelTurns<HeadDim>;
  constexpr int together = 8;  // rows on their way
  const Turns turns(*tables, -base);
  __syncwarp();
#pragma unroll 1
  for (int begin = 0; begin < 16 * Tiles; begin += together) {
    float x[together][Turns::count][2], largest[together];
#pragma unroll
    for (int k = 0; k < together; ++k) {
      const Element *query = rows.row(first + begin + k);
      largest[k] = 0;
#pragma unroll
      for (int i = 0; i < Turns::count; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          x[k][i][j] = 0;
          if (query == nullptr || !Turns::has(i)) continue;
          x[k][i][j] = static_cast<float>(query[Turns::channel(i) + j]) * rows.scale;
          largest[k] = fmaxf(largest[k], fabsf(x[k][i][j]));
        }
      }
    }
    if (base != 0) {
#pragma unroll
      for (int k = 0; k < together; ++k) {
        const Element *query = rows.row(first + begin + k);
#pragma unroll
        for (int i = 0; i < Turns::count; ++i) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            if (query == nullptr || !Turns::has(i)) continue;
            const float partner = static_cast<float>(query[turns.partner[i][j]]) * rows.scale;
            x[k][i][j] = x[k][i][j] * turns.cosine[i][j] + partner * turns.sine[i][j];
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < together; ++k) {
#pragma unroll
      for (int step = 1; step < warp_lanes; step *= 2) {
        largest[k] = fmaxf(largest[k], __shfl_xor_sync(0xffffffffu, largest[k], step));
      }
      const int row = begin + k;
      // Not so small that what rules make of scores, over it, could leave float's range.
      const float unit = fmaxf(unit_above(largest[k]), 0x1p-64f), inverse = inverse_of_power(unit);
      if (lane_index() == 0) units[row] = unit;
#pragma unroll
      for (int i = 0; i < Turns::count; ++i) {
        if (!Turns::has(i)) continue;
        const int channel = Turns::channel(i);
        reinterpret_cast<Word *>(to)[Places::element(row, channel) / 2] =
            halves(x[k][i][0] * inverse, x[k][i][1] * inverse);
      }
    }
  }
  __syncwarp();
}

}  // namespace squat::cuda
