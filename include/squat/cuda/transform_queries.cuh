#pragma once

// The queries of a column tile as pages see them: turned back by a tile's base, in the subspace basis, and
// as weights of the mean key's modes.
//
// Eight query rows that share a KV head are the columns of B (fragments.cuh); channels are its rows. Float16
// holds numbers below 1, so each column is divided by a power of two, its unit:
//
//   q = query * attention scale * log2 e = unit_q * stored
//   A^-T R(-base) q = unit_q unit_basis * stored,  projection R(-base) q = unit_q unit_modes * stored
//
// A transform is HeadDim^2 multiply-adds a column, once for the pages of a tile; its matrix comes from the
// caches, 2 HeadDim^2 bytes.

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/cuda/device_state.cuh"
#include "squat/cuda/fragments.cuh"
#include "squat/cuda/warp.cuh"

namespace squat::cuda {

inline constexpr int column_count = 8;  // query rows of a column tile

/// Shared memory of one warp's queries.
template <int HeadDim>
struct QueryStorage {
  static constexpr int steps = HeadDim / 16;
  static constexpr int most_mode_tiles = HeadDim / 16 + 1;
  static constexpr int row_stride = HeadDim + 8;  // columns of a quarter warp in different banks

  __half rows[column_count * row_stride];  // q / unit_q
  float cosines[HeadDim / 2];
  float sines[HeadDim / 2];
  uint2 turned[steps * warp_lanes];  // b0 and b1 of every step
  uint2 basis[steps * warp_lanes];
  uint2 modes[most_mode_tiles * warp_lanes];
};

/// The queries of one warp. A lane's units are those of its columns 2t and 2t+1 of C.
template <int HeadDim>
class Queries {
 public:
  static constexpr int steps = HeadDim / 16;

  __device__ Queries(QueryStorage<HeadDim> &storage, const HeadTables *head, const TileTables *tiles)
      : storage_(storage), head_(head), tiles_(tiles) {}

  /// Takes in the rows first ... of the column tile: row(column) is where a column's query stands, null for
  /// none. Exact rows meet turned(): the queries at base 0.
  template <class S, class Row>
  __device__ void load(Row &&row, float scale) {
    const int lane = lane_index();
    // Eight rows, four lanes each.
    const int column = lane / 4, t = lane % 4;
    const S *query = row(column);
    float largest = 0;
    for (int c = t; c < HeadDim; c += 4) {
      const float x = query == nullptr ? 0.0f : static_cast<float>(query[c]) * scale;
      largest = fmaxf(largest, fabsf(x));
    }
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    const float unit = unit_above(largest), inverse = scale * inverse_of_power(unit);
    __syncwarp();
    for (int c = t; c < HeadDim; c += 4) {
      const float x = query == nullptr ? 0.0f : static_cast<float>(query[c]) * inverse;
      storage_.rows[column * storage_.row_stride + c] = __float2half_rn(x);
    }
    unit_[0] = __shfl_sync(0xffffffffu, unit, 2 * t * 4);
    unit_[1] = __shfl_sync(0xffffffffu, unit, (2 * t + 1) * 4);
    __syncwarp();
    entered_ = false;
    turn(0);
  }

  /// Turns the queries back by `base`, and transforms them for packed pages, unless that is done. The
  /// registers of `c` are scratch.
  template <int Tiles>
  __device__ void enter(long long base, float (&c)[Tiles][4]) {
    face(base);
    if (!entered_ || base != base_) {
      basis_unit_[0] = basis_unit_[1] = mode_unit_[0] = mode_unit_[1] = 1;
      if (head_->basis != nullptr) transform(head_->basis, steps, storage_.basis, basis_unit_, c);
      if (head_->projection != nullptr) {
        transform(head_->projection, head_->mode_tiles, storage_.modes, mode_unit_, c);
        mode_unit_[0] *= head_->projection_unit;
        mode_unit_[1] *= head_->projection_unit;
      }
      entered_ = true;
      base_ = base;
    }
  }

  /// Turns the queries back by `base`, unless that is done: for rows that no coding holds.
  __device__ void face(long long base) {
    if (base != turned_by_) turn(base);
  }

  __device__ uint2 turned(int step) const { return storage_.turned[step * warp_lanes + lane_index()]; }
  __device__ uint2 basis(int step) const { return storage_.basis[step * warp_lanes + lane_index()]; }
  __device__ uint2 modes(int tile) const { return storage_.modes[tile * warp_lanes + lane_index()]; }

  __device__ float unit(int i) const { return unit_[i]; }
  __device__ float basis_unit(int i) const { return basis_unit_[i]; }
  __device__ float mode_unit(int i) const { return mode_unit_[i]; }
  __device__ const HeadTables &head() const { return *head_; }
  __device__ const TileTables &tiles() const { return *tiles_; }

 private:
  __device__ void turn(long long base) {
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    if (base != 0) find_turn(base);
    const __half *row = storage_.rows + g * storage_.row_stride;
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int channel = step * 16 + 2 * t;
      storage_.turned[step * warp_lanes + lane] = {turned_pair(row, channel, base != 0),
                                                   turned_pair(row, channel + 8, base != 0)};
    }
    turned_by_ = base;
    __syncwarp();
  }

  /// cos and sin of -base times every inverse frequency. Whole turns come off in double precision.
  __device__ void find_turn(long long base) {
    __syncwarp();
    for (int pair = lane_index(); pair < tiles_->pairs; pair += warp_lanes) {
      constexpr double inverse_turn = 0.15915494309189535;  // 1 / 2 pi
      const double turns =
          static_cast<double>(-base) * static_cast<double>(tiles_->inverse_frequencies[pair]) * inverse_turn;
      sincospif(2 * static_cast<float>(turns - rint(turns)), storage_.sines + pair, storage_.cosines + pair);
    }
    __syncwarp();
  }

  /// Channels c and c + 1 of a row, turned.
  __device__ Word turned_pair(const __half *row, int channel, bool turns) const {
    const __half2 own = *reinterpret_cast<const __half2 *>(row + channel);
    const int pairs = tiles_->pairs;
    if (!turns || channel >= 2 * pairs) return as_word(own);
    const float2 x = __half22float2(own);
    if (tiles_->interleaved) {
      const float c = storage_.cosines[channel / 2], s = storage_.sines[channel / 2];
      return halves(x.x * c - x.y * s, x.x * s + x.y * c);
    }
    return halves(turned_half(row, channel, x.x), turned_half(row, channel + 1, x.y));
  }
  __device__ float turned_half(const __half *row, int channel, float x) const {
    const int pairs = tiles_->pairs, pair = channel % pairs;
    if (channel >= 2 * pairs) return x;
    const float c = storage_.cosines[pair], s = storage_.sines[pair];
    return channel < pairs ? x * c - __half2float(row[channel + pairs]) * s
                           : __half2float(row[channel - pairs]) * s + x * c;
  }

  /// B of `tiles` tiles of 16 outputs, matrix times the turned queries, into `to`; at most so many tiles as
  /// registers hold at a time.
  template <int Tiles>
  __device__ void transform(const uint4 *matrix, int tiles, uint2 *to, float (&units)[2],
                            float (&c)[Tiles][4]) {
    // Powers of two of the norms of a row of A^-T are not known here: the largest output is found first,
    // over all tiles, in as many passes as the registers ask for.
    float largest[2] = {0, 0};
    for (int first = 0; first < tiles; first += Tiles) {
      multiply(matrix, first, tiles, c);
#pragma unroll
      for (int i = 0; i < Tiles; ++i) {
        largest[0] = fmaxf(largest[0], fmaxf(fabsf(c[i][0]), fabsf(c[i][2])));
        largest[1] = fmaxf(largest[1], fmaxf(fabsf(c[i][1]), fabsf(c[i][3])));
      }
    }
    float inverse[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      units[i] = unit_above(largest_row(largest[i]));
      inverse[i] = inverse_of_power(units[i]);
    }
    for (int first = 0; first < tiles; first += Tiles) {
      if (tiles > Tiles) multiply(matrix, first, tiles, c);
#pragma unroll
      for (int i = 0; i < Tiles; ++i) {
        if (first + i < tiles) {
          const Word low = halves(c[i][0] * inverse[0], c[i][1] * inverse[1]);
          const Word high = halves(c[i][2] * inverse[0], c[i][3] * inverse[1]);
          to[(first + i) * warp_lanes + lane_index()] = {transpose(low), transpose(high)};
        }
      }
    }
    __syncwarp();
  }

  /// c[i] = output tile first + i, 0 behind the last.
  template <int Tiles>
  __device__ void multiply(const uint4 *matrix, int first, int tiles, float (&c)[Tiles][4]) const {
#pragma unroll
    for (int i = 0; i < Tiles; ++i) c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0;
#pragma unroll 2
    for (int step = 0; step < steps; ++step) {
      const uint2 b = turned(step);
#pragma unroll
      for (int i = 0; i < Tiles; ++i) {
        if (first + i < tiles) {
          const uint4 a = __ldg(matrix + ((first + i) * steps + step) * warp_lanes + lane_index());
          multiply_add(c[i], a.x, a.y, a.z, a.w, b.x, b.y);
        }
      }
    }
  }

  QueryStorage<HeadDim> &storage_;
  const HeadTables *head_;
  const TileTables *tiles_;
  float unit_[2];
  float basis_unit_[2];
  float mode_unit_[2];
  long long base_ = 0;       // of enter()
  long long turned_by_ = 0;  // of turn()
  bool entered_ = false;
};

}  // namespace squat::cuda
