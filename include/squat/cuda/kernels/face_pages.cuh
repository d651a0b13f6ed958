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

#include "squat/cuda/kernels/byte_products.cuh"
#include "squat/cuda/kernels/decode_memory.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Pages whose queries are made together.
struct PageBatch {
  std::int32_t first = 0, count = 0;  ///< of the piece's pages
  unsigned names = 0;                 ///< two bits a page: 0 for pages of the first's base, then 1, ...
  unsigned reuse = 0;  ///< pages that see the modes of the page before from the other base of its pass
  unsigned in_basis = 0;  ///< pages coded there
  std::int32_t bases = 1;

  __device__ unsigned name(int page) const { return names >> 2 * page & 3; }
  /// The first page of a base; page 0 where there is none.
  __device__ int page_named(unsigned name) const {
    int found = 0;
#pragma unroll
    for (int page = batch_pages - 1; page >= 0; --page) {
      if (this->name(page) == name) found = page;
    }
    return found;
  }

  /// What is known when pages are looked up, in 15 bits. tile(i): what pages of one base have in common.
  template <class Tile, class Row>
  __device__ static std::uint16_t parts(int count, Tile &&tile, Row &&row) {
    PageBatch batch;
    int tiles[batch_pages], rows[batch_pages];
#pragma unroll
    for (int i = 0; i < batch_pages; ++i) {
      const int page = min(i, count - 1);
      tiles[i] = tile(page), rows[i] = row(page);
      unsigned name = i == 0 ? 0 : static_cast<unsigned>(batch.bases);
#pragma unroll
      for (int j = 0; j < i; ++j) {
        if (tiles[j] == tiles[i]) name = batch.name(j);
      }
      batch.names |= name << 2 * i;
      batch.bases = max(batch.bases, static_cast<int>(name) + 1);
      if (i % 2 != 0 && rows[i] == rows[i - 1] && (batch.name(i - 1) ^ name) == 1)
        batch.reuse |= 1u << i;
    }
    return static_cast<std::uint16_t>(batch.names | batch.reuse << 8 |
                                      static_cast<unsigned>(batch.bases) << 12);
  }
  __device__ void set_parts(unsigned parts) {
    names = parts & 255;
    reuse = parts >> 8 & 15;
    bases = static_cast<int>(parts >> 12);
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

/// One warp's part of that. team: offset of the team's shared memory.
template <class Layout, ValueCoding Values>
class PageFacing {
 public:
  using Memory = DecodeMemory<Layout, Values>;
  static constexpr int HeadDim = Layout::HeadDim, steps = HeadDim / 16;
  static constexpr int most_tiles = (steps + team_warps - 1) / team_warps;  // of a warp

  __device__ PageFacing(const DecodeTables &tables, int team, int barrier, int warp)
      : tables_(tables), team_(opaque(team)), barrier_(barrier), warp_(opaque(warp)) {}

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

  /// Turns the warp's row back by two bases. turns: offset of TileTables::turns.
  __device__ void turn(long long first, long long second, int turns) const {
    constexpr int indices = HeadDim / 2;
    const int lane = opaque(lane_index());
#pragma unroll
    for (int i = 0; i < (indices + warp_lanes - 1) / warp_lanes; ++i) {
      const int index = i * warp_lanes + lane;
      if (indices % warp_lanes == 0 || index < indices) turn_pair_of(index, first, second, turns);
    }
  }

  /// Makes the modes and bytes of the pages that see one of the pass's bases, and adds their zeros'
  /// scores to `zeros`. All of the team come here, after turn() and a barrier.
  __device__ void make(const PageBatch &batch, int pass, float (&zeros)[batch_pages]) const {
    unsigned seen = 0;  // pages of the pass
#pragma unroll
    for (int page = 0; page < batch_pages; ++page) {
      if (page < batch.count && static_cast<int>(batch.name(page)) / 2 == pass) seen |= 1u << page;
    }
    const int lane = opaque(lane_index()), turned = team_ + Memory::turned + lane * 8;
    const auto b_of = [&](int s) { return shared_at<const uint2>(turned + s * Memory::turned_step); };
    if (warp_ < tables_.mode_tiles) {
      float m[4] = {};
#pragma unroll 4
      for (int s = 0; s < steps; ++s) {
        const uint2 b = b_of(s);
        const uint4 p = matrix_tile(Memory::projection, tables_.projection, warp_ * steps + s, lane);
        multiply_add(m, p.x, p.y, p.z, p.w, b.x, b.y);
      }
      shared_at<uint2>(team_ + Memory::modes + pass * Memory::modes_of_pass + warp_ * 256 + lane * 8) = {
          transpose(halves(m[0], m[1])), transpose(halves(m[2], m[3]))};
    }
    float d[most_tiles][4];
    if ((seen & batch.in_basis) != 0) {
#pragma unroll
      for (int i = 0; i < most_tiles; ++i) d[i][0] = d[i][1] = d[i][2] = d[i][3] = 0;
#pragma unroll 4
      for (int s = 0; s < steps; ++s) {
        const uint2 b = b_of(s);
#pragma unroll
        for (int i = 0; i < most_tiles; ++i) {
          if (!has(i)) continue;
          const uint4 x = matrix_tile(Memory::basis, tables_.basis, tile(i) * steps + s, lane);
          multiply_add(d[i], x.x, x.y, x.z, x.w, b.x, b.y);
        }
      }
      const int eight = tables_.eight * Layout::unit;
      write(batch, seen & batch.in_basis, eight + (tables_.four + tables_.two) * Layout::unit, eight, d,
            zeros);
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
      write(batch, seen & ~batch.in_basis, HeadDim, Layout::KeyBits == 8 ? HeadDim : 0, d, zeros);
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

  /// Turns pair `index`, or copies the two channels that have that index among those that do not turn.
  __device__ void turn_pair_of(int index, long long first, long long second, int turns) const {
    const int pairs = tables_.pairs, row = team_ + Memory::queries + warp_ * HeadDim * 2;
    const bool does = index < pairs, apart = does && tables_.interleaved == 0;
    const int low = apart ? index : 2 * index, high = apart ? index + pairs : 2 * index + 1;
    const float x = __half2float(shared_at<const __half>(row + low * 2));
    const float y = __half2float(shared_at<const __half>(row + high * 2));
    const unsigned long long frequency =
        does ? shared_at<const unsigned long long>(turns + index * 8) : 0;
    const int to_low = place(low, 2 * warp_), to_high = place(high, 2 * warp_);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // The fraction of a turn back, in 2^-32, whole turns lost.
      const auto base = static_cast<unsigned long long>(i == 0 ? first : second);
      const auto turned = static_cast<int>(base * frequency >> 32);
      const float angle = static_cast<float>(turned) * (-6.2831853f / 4294967296.0f);
      const float s = __sinf(angle), c = __cosf(angle);
      shared_at<__half>(to_low + i * column_bytes) = __float2half_rn(x * c - y * s);
      shared_at<__half>(to_high + i * column_bytes) = __float2half_rn(y * c + x * s);
    }
  }

  /// Writes the bytes of the pages of the set `pages`, all of one space: its channels from `coded` on
  /// have no codes, those up to `wide` codes of 8 bits.
  __device__ void write(const PageBatch &batch, unsigned pages, int coded, int wide,
                        const float (&d)[most_tiles][4], float (&zeros)[batch_pages]) const {
    const int lane = opaque(lane_index()), g = lane >> 2, t = lane & 3;
    float x[batch_pages][most_tiles][2], largest[batch_pages] = {};
    const int part = team_ + Memory::parts + warp_ * 32 + g * 4;
#pragma unroll
    for (int page = 0; page < batch_pages; ++page) {
      if ((pages >> page & 1) == 0) continue;
      const bool second = (batch.name(page) & 1) != 0;
#pragma unroll
      for (int i = 0; i < most_tiles; ++i) {
        if (!has(i)) continue;
        const auto pair = [&](int offset) {
          return as_halves(
              shared_at<const Word>(part + page * Memory::part_bytes + offset + i * team_warps * 32));
        };
        const float2 scale = __half22float2(__habs2(pair(Layout::key_scales)));
        const float2 zero = __half22float2(pair(Layout::key_zeros));
        const float low = second ? d[i][1] : d[i][0], high = second ? d[i][3] : d[i][2];
        zeros[page] = fmaf(low, zero.x, fmaf(high, zero.y, zeros[page]));
        const int channel = tile(i) * 16;
        x[page][i][0] = channel < coded ? low * scale.x : 0.0f;
        x[page][i][1] = channel + 8 < coded ? high * scale.y : 0.0f;
        float most = fmaxf(fabsf(x[page][i][0]), fabsf(x[page][i][1]));
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
    const int to = team_ + Memory::bytes + warp_ * Memory::step_bytes + t * 32 + g * 2;
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
      const auto store = [&](int i, int step, float by) {
        const Word four = query_bytes(x[page][i][0], x[page][i][1], by);
        const int at = to + page * Memory::query_bytes_of_page + step * Memory::step_bytes;
        shared_at<std::uint16_t>(at) = static_cast<std::uint16_t>(four);
        shared_at<std::uint16_t>(at + 16) = static_cast<std::uint16_t>(four >> 16);
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
  int team_, barrier_, warp_;
};

}  // namespace squat::cuda
