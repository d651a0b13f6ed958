#pragma once

// The keys of a page in shared memory, in the frame they are coded in.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/cuda/kernels/elements.cuh"
#include "squat/cuda/kernels/hadamard_signs.cuh"
#include "squat/cuda/kernels/rotary.cuh"
#include "squat/cuda/page/byte_block.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"
#include "squat/cuda/state/exact_slots.cuh"

namespace squat::cuda {

/// Rows of channels, of tokens in the order that makes a lane's own follow each other: lane (g, t) of a
/// warp owns the rows g + 8 j, and four of equal j / 4 are a piece of 16 bytes. Rows are tokens, or,
/// where pages may have trellis codes, as PageLayout has them: tokens follow each other then (InOrder).
/// Rows of channels are 16 bytes longer than their tokens, so that tiles are written without bank
/// conflicts.
template <int HeadDim, int Group, bool InOrder = false>
struct PageKeys {
  static constexpr int rows = Group / 8;  // tokens a lane owns
  static constexpr int stride = Group + 4;
  static constexpr int floats = HeadDim * stride;

  float *data;

  __device__ float *channel(int index) const { return data + index * stride; }

  /// Where row g + 8 j stands in its channel's, and where a token does.
  __device__ static constexpr int place(int g, int j) { return (j / 4 * 8 + g) * 4 + j % 4; }
  __device__ static constexpr int place(int token) {
    return InOrder ? token : place(token % 8, token / 8);
  }

  /// From token `token` of the tail on, a multiple of 16. A warp converts 32 tokens of 16 channels at a
  /// time.
  template <class T>
  __device__ void load(const ExactSlots &tail, int head, int token) const {
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    const int warp = static_cast<int>(threadIdx.x) / warp_lanes,
              warps = static_cast<int>(blockDim.x) / warp_lanes;
    constexpr int tiles = HeadDim / 16, quads = Group / 32;
#pragma unroll 4
    for (int i = warp; i < tiles * quads; i += warps) {
      const int tile = i % tiles, quad = i / tiles;
      uint4 words[2];
#pragma unroll
      for (int half_quad = 0; half_quad < 2; ++half_quad) {
        const std::uint16_t *block = tail.block<HeadDim>(head, token + quad * 32 + half_quad * 16);
        words[half_quad] = reinterpret_cast<const uint4 *>(block)[tile * warp_lanes + lane];
      }
#pragma unroll
      for (int part = 0; part < 2; ++part) {  // columns 2t and 2t + 8 on
        const float2 x[4] = {word_values<T>(part == 0 ? words[0].x : words[0].z),
                             word_values<T>(part == 0 ? words[0].y : words[0].w),
                             word_values<T>(part == 0 ? words[1].x : words[1].z),
                             word_values<T>(part == 0 ? words[1].y : words[1].w)};
        put(tile * 16 + 2 * t + part * 8, g, quad, x);
      }
    }
  }

  /// The same of a tail of bytes. Ends with a barrier.
  __device__ void load(const ByteSlots &tail, int head, int token) const {
    using Block = ByteBlock<HeadDim>;
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    const int warp = static_cast<int>(threadIdx.x) / warp_lanes,
              warps = static_cast<int>(blockDim.x) / warp_lanes;
    constexpr int tiles = HeadDim / 16, quads = Group / 32;
#pragma unroll 2
    for (int i = warp; i < tiles * quads; i += warps) {
      const int tile = i % tiles, quad = i / tiles;
      float2 x[2][4];  // [columns 2t and 2t + 8 on][token]
#pragma unroll
      for (int half_quad = 0; half_quad < 2; ++half_quad) {
        const std::uint8_t *block = tail.block<HeadDim>(head, token + quad * 32 + half_quad * 16);
        const uint4 words =
            byte_halves(reinterpret_cast<const uint2 *>(block)[tile * warp_lanes + lane]);
        const Word parts[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const float step =
              __half2float(*reinterpret_cast<const __half *>(block + Block::key_step(g + part % 2 * 8)));
          const float2 pair = __half22float2(as_halves(parts[part]));
          x[part / 2][2 * half_quad + part % 2] = {pair.x * step, pair.y * step};
        }
      }
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        put(tile * 16 + 2 * t + part * 8, g, quad, x[part]);
      }
    }
    __syncthreads();
    rotate_back();
  }

  /// Rotates all tokens back, see rotate_hadamard(); by a block, which it ends with a barrier of.
  __device__ void rotate_back() const {
    constexpr int block = HeadDim & -HeadDim;
    static_assert(block > 16, "squat: the last of the butterflies turn signs");
    const float unit = rsqrtf(static_cast<float>(block));
    butterflies<16, 1, false>(unit);
    __syncthreads();
    butterflies<block / 16, 16, true>(1);
    __syncthreads();
  }

  /// Turns them by `turn` (where it is not null), one angle a pair, and takes the mean (where it is not
  /// null) off, turned by each token's row of the tile. row: of the page's first token.
  __device__ void enter_frame(const TileTables &tables, const float2 *turn, const float *mean,
                              int row) const {
    const int threads = static_cast<int>(blockDim.x);
    for (int i = static_cast<int>(threadIdx.x); i < tables.pairs * Group; i += threads) {
      const int pair = i / Group, token = i % Group;
      const int2 channels = pair_channels(tables, pair);
      float &a = channel(channels.x)[place(token)], &b = channel(channels.y)[place(token)];
      float2 x = {a, b};
      if (turn != nullptr) x = turn_pair(turn[pair], x);
      if (mean != nullptr) {
        const float2 centre =
            turn_pair(frame_angle(tables, pair, row + token), {mean[channels.x], mean[channels.y]});
        x = {x.x - centre.x, x.y - centre.y};
      }
      a = x.x;
      b = x.y;
    }
    if (mean == nullptr) return;
    const int still = 2 * tables.pairs;
    for (int i = static_cast<int>(threadIdx.x); i < (HeadDim - still) * Group; i += threads) {
      channel(still + i / Group)[i % Group] -= mean[still + i / Group];
    }
  }

  /// The lane's rows of channel `index`.
  __device__ void read(int index, float (&x)[rows]) const {
#pragma unroll
    for (int j = 0; j < rows; j += 4) {
      const float4 piece =
          *reinterpret_cast<const float4 *>(channel(index) + place(lane_index() / 4, j));
      x[j] = piece.x;
      x[j + 1] = piece.y;
      x[j + 2] = piece.z;
      x[j + 3] = piece.w;
    }
  }

 private:
  /// Puts the tokens g + 8 j of the four tiles of 8 of `quad` to channels `index` and `index` + 1.
  __device__ void put(int index, int g, int quad, const float2 (&x)[4]) const {
    float *to = channel(index);
    if constexpr (InOrder) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        to[quad * 32 + g + 8 * j] = x[j].x;
        to[stride + quad * 32 + g + 8 * j] = x[j].y;
      }
    } else {
      to += place(g, quad * 4);
      *reinterpret_cast<float4 *>(to) = {x[0].x, x[1].x, x[2].x, x[3].x};
      *reinterpret_cast<float4 *>(to + stride) = {x[0].y, x[1].y, x[2].y, x[3].y};
    }
  }

  /// Rotates `Count` channels, `step` apart, with one another, times `unit`, and turns signs then: a
  /// thread those of a token.
  template <int Count, int step, bool TurnsSigns>
  __device__ void butterflies(float unit) const {
    constexpr int sets = HeadDim / Count;
    for (int i = static_cast<int>(threadIdx.x); i < sets * Group; i += static_cast<int>(blockDim.x)) {
      const int set = i / Group;
      const int first_channel = set / step * (Count * step) + set % step;
      float *first = channel(first_channel) + i % Group;
      float x[Count];
#pragma unroll
      for (int j = 0; j < Count; ++j) x[j] = first[j * (step * stride)] * unit;
#pragma unroll
      for (int span = 1; span < Count; span *= 2) {
#pragma unroll
        for (int j = 0; j < Count; ++j) {
          if ((j & span) != 0) continue;
          const float low = x[j], high = x[j + span];
          x[j] = low + high;
          x[j + span] = low - high;
        }
      }
#pragma unroll
      for (int j = 0; j < Count; ++j) {
        if constexpr (TurnsSigns) x[j] *= hadamard_sign<HeadDim>(first_channel + j * step);
        first[j * (step * stride)] = x[j];
      }
    }
  }
};

}  // namespace squat::cuda
