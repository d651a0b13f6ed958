#pragma once

// The queries of a team as a batch of pages sees them: turned back by each page's base, in the subspace
// basis, times the scales of its codes, as bytes; and as weights of the mean key's modes.
//
//   score = |q| (unit (256 high + low) + zero + modes)
//
// where 256 high + low are integers times codes, and query_range of a page's units are the most that a
// step of any code may change its score by, for a query of norm 1.
//
// Four rows and two bases at a time are the eight columns of B. A pass has two of the batch's bases.

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/coding/trellis.hpp"
#include "squat/cuda/kernels/byte_products.cuh"
#include "squat/cuda/kernels/decode_memory.cuh"
#include "squat/cuda/kernels/rotary.cuh"
#include "squat/cuda/kernels/row_sums.cuh"
#include "squat/cuda/kernels/shared_memory.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Pages whose queries are made together. Their bases have names: 0 for that of the first page, then 1,
/// ...
struct PageBatch {
  std::int32_t first = 0, count = 0;  ///< of the piece's pages
  // Sets of pages:
  unsigned odd = 0, later = 0;  ///< the bits of their bases' names
  unsigned reuse = 0;       ///< that see the modes of the page before, from the other base of its pass
  unsigned in_basis = 0;    ///< that are coded there
  unsigned about_mean = 0;  ///< whose values are coded about their mean
  unsigned trellis = 0;     ///< whose keys of up to 3 bits are trellis codes
  std::int32_t passes = 1;  ///< of two bases each

  __device__ int name(int page) const {
    return static_cast<int>((odd >> page & 1) | (later >> page & 1) << 1);
  }
  /// Those whose base is one of the pass.
  __device__ unsigned of_pass(int pass) const {
    return (pass == 0 ? ~later : later) & ((1u << count) - 1);
  }
  __device__ void add(int page, int name, bool reuses) {
    odd |= (static_cast<unsigned>(name) & 1) << page;
    later |= static_cast<unsigned>(name) / 2 << page;
    reuse |= (reuses ? 1u : 0u) << page;
  }

  /// What is known when pages are looked up.
  __device__ std::uint16_t known() const {
    return static_cast<std::uint16_t>(odd | later << 4 | reuse << 8);
  }
  __device__ void set(unsigned known) {
    odd = known & 15, later = known >> 4 & 15, reuse = known >> 8;
    passes = later != 0 ? 2 : 1;
  }
};

/// One of the values of all lanes of equal t, combined: that of the page lane / 8.
template <class Operation>
__device__ inline float combine_by_page(const float (&x)[batch_pages], Operation &&operation) {
  const bool upper = (lane_index() & 16) != 0, second = (lane_index() & 8) != 0;
  const auto meet = [&](float own, float other, int step) {
    return operation(own, __shfl_xor_sync(0xffffffffu, other, step));
  };
  const float a = meet(upper ? x[2] : x[0], upper ? x[0] : x[2], 16);
  const float b = meet(upper ? x[3] : x[1], upper ? x[1] : x[3], 16);
  const float both = meet(second ? b : a, second ? a : b, 8);
  return meet(both, both, 4);
}

/// One warp's part of that. block, team: their memory.
template <class Layout, ValueCoding Values>
class PageFacing {
 public:
  using Memory = DecodeMemory<Layout, Values>;
  static constexpr int HeadDim = Layout::HeadDim, steps = HeadDim / 16;
  static constexpr int most_tiles = (steps + team_warps - 1) / team_warps;  // of a warp

  __device__ PageFacing(const DecodeTables &tables, int block, int team, int barrier, int warp)
      : tables_(tables), block_(block), team_(opaque(team)), barrier_(barrier), warp_(opaque(warp)) {}

  /// The warp's row as it is, for exact rows.
  __device__ void put_row() const {
    const int row = team_ + Memory::queries + warp_ * HeadDim * 2, lane = opaque(lane_index());
#pragma unroll
    for (int i = 0; i < HeadDim / warp_lanes; ++i) {
      const int channel = i * warp_lanes + lane, at = place(channel, 2 * warp_);
      const __half x = shared_at<__half>(row + channel * 2);
      shared_at<__half>(at) = x;
      shared_at<__half>(at + column_bytes) = x;
    }
  }

  /// The same, rotated (coding/hadamard.hpp), for rows of bytes.
  __device__ void put_rotated_row() const {
    using Quads = RowSums<HeadDim>;
    const int row = team_ + Memory::queries + warp_ * HeadDim * 2;
    float4 x[Quads::count] = {};
#pragma unroll
    for (int i = 0; i < Quads::count; ++i) {
      if (!Quads::has(i)) continue;
      const uint2 pairs = shared_at<const uint2>(row + Quads::quad(i) * 8);
      const float2 low = __half22float2(as_halves(pairs.x)), high = __half22float2(as_halves(pairs.y));
      x[i] = {low.x, low.y, high.x, high.y};
    }
    rotate_quads<HeadDim>(x);
#pragma unroll
    for (int i = 0; i < Quads::count; ++i) {
      if (!Quads::has(i)) continue;
      const float of_quad[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = place(Quads::quad(i) * 4 + j, 2 * warp_);
        shared_at<__half>(at) = shared_at<__half>(at + column_bytes) = __float2half_rn(of_quad[j]);
      }
    }
  }

  /// Turns the team's rows back by the two bases of a pass. base: the first for even warps, the second
  /// for odd ones, which have half of the rows each.
  __device__ void turn(long long base) const {
    const int lane = opaque(lane_index());
#pragma unroll
    for (int index = 0; index < HeadDim / 2; index += 2 * warp_lanes) {
      const int own = index + 2 * lane;
      if (HeadDim / 2 % (2 * warp_lanes) == 0 || own < HeadDim / 2) turn_pairs(own, base);
    }
  }

  /// Makes the modes and bytes of the pages that see one of the pass's bases, and adds their zeros'
  /// scores to `zeros`. All of the team come here, after turn() and a barrier.
  __device__ void make(const PageBatch &batch, int pass, float (&zeros)[batch_pages]) const {
    const unsigned seen = batch.of_pass(pass);
    const int lane = opaque(lane_index()), turned = team_ + Memory::turned + lane * 8;
    const auto b_of = [&](int s) { return shared_at<const uint2>(turned + s * Memory::turned_step); };
    const auto make_modes = [&](int tile) {
      float m[4] = {};
#pragma unroll 8
      for (int s = 0; s < steps; ++s) {
        const uint2 b = b_of(s);
        const uint4 p =
            matrix_tile(block_ + Memory::projection, tables_.projection, tile * steps + s, lane);
        multiply_add(m, p.x, p.y, p.z, p.w, b.x, b.y);
      }
      shared_at<uint2>(team_ + Memory::modes + pass * Memory::modes_of_pass + tile * 256 + lane * 8) = {
          transpose(halves(m[0], m[1])), transpose(halves(m[2], m[3]))};
    };
    if (warp_ < tables_.mode_tiles) make_modes(warp_);
    if constexpr (most_mode_tiles(HeadDim) > team_warps) {
      if (warp_ + team_warps < tables_.mode_tiles) make_modes(warp_ + team_warps);
    }
    float d[most_tiles][4];
    if ((seen & batch.in_basis) != 0) {
#pragma unroll
      for (int i = 0; i < most_tiles; ++i) d[i][0] = d[i][1] = d[i][2] = d[i][3] = 0;
#pragma unroll 8
      for (int s = 0; s < steps; ++s) {
        const uint2 b = b_of(s);
#pragma unroll
        for (int i = 0; i < most_tiles; ++i) {
          if (!has(i)) continue;
          const uint4 x = matrix_tile(block_ + Memory::basis, tables_.basis, tile(i) * steps + s, lane);
          multiply_add(d[i], x.x, x.y, x.z, x.w, b.x, b.y);
        }
      }
      const int eight = tables_.eight * Layout::unit, scalar = eight + tables_.four * Layout::unit;
      int narrow = tables_.two;
      if constexpr (Memory::shares_bits) narrow += tables_.three + tables_.one;
      write(batch, seen & batch.in_basis, scalar + narrow * Layout::unit, scalar, eight, d, zeros);
    }
    if ((seen & ~batch.in_basis) != 0) {
#pragma unroll
      for (int i = 0; i < most_tiles; ++i) {
        if (!has(i)) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          d[i][j] = __half2float(shared_at<const __half>(
              place(tile(i) * 16 + (lane >> 2) + j / 2 * 8, 2 * (lane & 3) + j % 2)));
        }
      }
      const int bits = Memory::shares_bits ? tables_.plain_key_bits : Layout::KeyBits;
      write(batch, seen & ~batch.in_basis, HeadDim, HeadDim, bits == 8 ? HeadDim : 0, d, zeros);
    }
  }

 private:
  static constexpr int column_bytes = 32;

  /// A lane's part of tile `index` of a matrix.
  __device__ static uint4 matrix_tile(int shared, const uint4 *global, int index, int lane) {
    if constexpr (Memory::shares_matrices)
      return shared_at<const uint4>(shared + index * 512 + lane * 16);
    return __ldg(global + index * warp_lanes + lane);
  }

  /// Tile i of the warp.
  __device__ int tile(int i) const { return i * team_warps + warp_; }
  __device__ bool has(int i) const { return steps % team_warps == 0 || tile(i) < steps; }

  /// Where channel `channel` of column `column` of B stands.
  __device__ int place(int channel, int column) const {
    return team_ + Memory::turned + (channel >> 4) * Memory::turned_step + (channel >> 1 & 3) * 8 +
           (channel >> 3 & 1) * 4 + (channel & 1) * 2 + column * column_bytes;
  }

  /// Turns pairs `index` and `index + 1`, where index is even, or copies the four channels that have
  /// that place among those that do not turn.
  __device__ void turn_pairs(int index, long long base) const {
    const int pairs = tables_.pairs, column = warp_ / 2 * 4 + warp_ % 2;
    float sine[2] = {0, 0}, cosine[2] = {1, 1};
    const bool turns = index < pairs, apart = turns && tables_.interleaved == 0;
    if (turns) {
      const auto of_pairs = shared_at<const ulonglong2>(block_ + Memory::turns + index * 8);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 back = turn_back(i == 0 ? of_pairs.x : of_pairs.y, base);
        cosine[i] = back.x, sine[i] = back.y;
      }
    }
    if (pairs % 2 != 0 && apart) return turn_odd_pairs(index, sine, cosine);
    const int a = apart ? index : 2 * index, b = apart ? index + pairs : 2 * index + 2;
    const int to_a = place(a, column), to_b = place(b, column);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = team_ + Memory::queries + (warp_ / 2 * 2 + i) * HeadDim * 2;
      const float2 x = __half22float2(shared_at<const __half2>(row + a * 2)),
                   y = __half22float2(shared_at<const __half2>(row + b * 2));
      __half2 from_a, from_b;
      if (apart) {
        from_a = __floats2half2_rn(x.x * cosine[0] - y.x * sine[0], x.y * cosine[1] - y.y * sine[1]);
        from_b = __floats2half2_rn(y.x * cosine[0] + x.x * sine[0], y.y * cosine[1] + x.y * sine[1]);
      } else {
        from_a = __floats2half2_rn(x.x * cosine[0] - x.y * sine[0], x.y * cosine[0] + x.x * sine[0]);
        from_b = __floats2half2_rn(y.x * cosine[1] - y.y * sine[1], y.y * cosine[1] + y.x * sine[1]);
      }
      shared_at<__half2>(to_a + i * 2 * column_bytes) = from_a;
      shared_at<__half2>(to_b + i * 2 * column_bytes) = from_b;
    }
  }

  /// The same where channels index and index + pairs turn together and pairs is odd, so that no two lie
  /// in a word.
  __device__ void turn_odd_pairs(int index, const float (&sine)[2], const float (&cosine)[2]) const {
    const int pairs = tables_.pairs, column = warp_ / 2 * 4 + warp_ % 2;
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
      const int pair = index + i % 2, first = warp_ / 2 * 2;
      // Behind the last pair one of the channels that do not turn.
      const int row = team_ + Memory::queries + (first + i / 2) * HeadDim * 2;
      const int a = pair < pairs ? pair : 2 * pair, b = pair < pairs ? pair + pairs : 2 * pair + 1;
      const float s = pair < pairs ? sine[i % 2] : 0.0f, c = pair < pairs ? cosine[i % 2] : 1.0f;
      const float x = __half2float(shared_at<const __half>(row + a * 2)),
                  y = __half2float(shared_at<const __half>(row + b * 2));
      const int to = i / 2 * 2 * column_bytes;
      shared_at<__half>(place(a, column) + to) = __float2half_rn(x * c - y * s);
      shared_at<__half>(place(b, column) + to) = __float2half_rn(y * c + x * s);
    }
  }

  /// Writes the bytes of the pages of the set `pages`, all of one space: its channels from `coded` on
  /// have no codes, those from `scalar` on levels where codes are trellis codes, those up to `wide`
  /// codes of 8 bits.
  __device__ void write(const PageBatch &batch, unsigned pages, int coded, int scalar, int wide,
                        const float (&d)[most_tiles][4], float (&zeros)[batch_pages]) const {
    const int lane = opaque(lane_index()), g = lane >> 2, t = lane & 3;
    float x[batch_pages][most_tiles][2], largest[batch_pages] = {};
    const int part = team_ + Memory::parts + warp_ * 32 + g * 4;
#pragma unroll
    for (int page = 0; page < batch_pages; ++page) {
      if ((pages >> page & 1) == 0) continue;
      const bool odd = (batch.odd >> page & 1) != 0;
#pragma unroll
      for (int i = 0; i < most_tiles; ++i) {
        if (!has(i)) continue;
        const auto pair = [&](int offset) {
          return as_halves(
              shared_at<const Word>(part + page * Memory::part_bytes + offset + i * team_warps * 32));
        };
        const float2 scale = __half22float2(__habs2(pair(Layout::key_scales)));
        const float2 zero = __half22float2(pair(Layout::key_zeros));
        const float low = odd ? d[i][1] : d[i][0], high = odd ? d[i][3] : d[i][2];
        zeros[page] = fmaf(low, zero.x, fmaf(high, zero.y, zeros[page]));
        x[page][i][0] = low * scale.x;
        x[page][i][1] = high * scale.y;
        const int channel = tile(i) * 16;
        if constexpr (Layout::trellis) {
          constexpr float level = 1.0f / trellis_unit;
          if ((batch.trellis >> page & 1) != 0) {
            if (channel >= scalar) x[page][i][0] *= level;
            if (channel + 8 >= scalar) x[page][i][1] *= level;
          }
        }
        // What no code meets may be anything.
        float most = 0;
        if (channel < coded) most = fabsf(x[page][i][0]);
        if (channel + 8 < coded) most = fmaxf(most, fabsf(x[page][i][1]));
        if (channel < wide) most *= 16;
        largest[page] = fmaxf(largest[page], most);
      }
    }
    const float all = combine_by_page(largest, [](float a, float b) { return fmaxf(a, b); });
    const int page_of_lane = lane >> 3;
    if ((lane & 4) == 0 && (pages >> page_of_lane & 1) != 0) {
      shared_at<float>(team_ + Memory::largest + page_of_lane * Memory::of_rows +
                       (t * team_warps + warp_) * 4) = all;
    }
    sync_threads(barrier_, team_threads);
    const int to = team_ + Memory::bytes + warp_ * Memory::step_bytes + lane * 4;
#pragma unroll
    for (int page = 0; page < batch_pages; ++page) {
      if ((pages >> page & 1) == 0) continue;
      const float4 of =
          shared_at<const float4>(team_ + Memory::largest + page * Memory::of_rows + t * team_warps * 4);
      const float most = fmaxf(fmaxf(of.x, of.y), fmaxf(of.z, of.w)) + 1e-30f;
      if (warp_ == 0 && g == 0) {
        shared_at<float>(team_ + Memory::units + (page * team_rows + t) * 4) = most * (1 / query_range);
      }
      const float factor = __fdividef(query_range, most);
      // C has two channels of a row in a lane, and so have the bytes' halves: transposed, they are B.
      const auto store = [&](int i, int step, float by) {
        shared_at<Word>(to + page * Memory::query_bytes_of_page + step * Memory::step_bytes) =
            transpose(query_bytes(x[page][i][0], x[page][i][1], by));
      };
#pragma unroll
      for (int i = 0; i < most_tiles; ++i) {
        if (has(i)) store(i, i * team_warps, factor);
      }
      if (wide == 0) continue;
#pragma unroll
      for (int i = 0; i < most_tiles; ++i) {
        if (has(i) && tile(i) * 16 < wide) store(i, steps + i * team_warps, factor * 16);
      }
    }
  }

  const DecodeTables &tables_;
  int block_, team_, barrier_, warp_;
};

}  // namespace squat::cuda
