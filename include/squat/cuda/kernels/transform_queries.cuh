#pragma once

// The queries of a column tile as pages see them: turned back by a tile's base, in the subspace basis,
// and as weights of the mean key's modes.
//
// Eight query rows that share a KV head are the columns of B (fragments.cuh); channels are its rows.
// Float16 holds numbers below 1, so each column is divided by a power of two, its unit:
//
//   q = query * attention scale * log2 e = unit_q * stored
//   A^-T R(-base) q = unit_q unit_basis * stored,  projection R(-base) q = unit_q projection_unit *
//   stored
//
// A transform is HeadDim^2 multiply-adds a column, once for the pages of a tile; its matrix comes from
// the caches, 2 HeadDim^2 bytes.

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Positions that the columns of a tile are turned back by at most: in equal runs of columns.
inline constexpr int most_bases = 4;

/// Shared memory of one warp's queries.
template <int HeadDim>
struct QueryStorage {
  static constexpr int steps = HeadDim / 16;
  static constexpr int row_stride = HeadDim + 8;  // columns of a quarter warp in different banks

  alignas(16) __half rows[column_count * row_stride];  // q / unit_q
  float cosines[most_bases][HeadDim / 2];
  float sines[most_bases][HeadDim / 2];
  uint2 turned[steps * warp_lanes];  // b0 and b1 of every step
};

/// The queries of one warp. A lane's units are those of its columns 2t and 2t+1 of C.
template <int HeadDim>
class Queries {
 public:
  static constexpr int steps = HeadDim / 16;

  __device__ Queries(QueryStorage<HeadDim> &storage, const TileTables *tiles)
      : storage_(storage), tiles_(tiles), pairs_(tiles->pairs), interleaved_(tiles->interleaved != 0) {}

  /// Takes in the rows of a column tile: row(column) is where a column's query stands, null for none.
  /// They face nothing yet.
  template <class S, class Row>
  __device__ void load(Row &&row, float scale) {
    const int lane = lane_index();
    // Eight rows, four lanes each, which take runs of eight channels in turn.
    const int column = lane / 4, t = lane % 4;
    constexpr int runs = HeadDim / 32;
    const S *query = row(column);
    float x[runs][8] = {};
    if (query != nullptr) read_runs(query + t * 8, x);
    float largest = 0;
#pragma unroll
    for (int i = 0; i < runs; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        x[i][j] *= scale;
        largest = fmaxf(largest, fabsf(x[i][j]));
      }
    }
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    const float unit = unit_above(largest), inverse = inverse_of_power(unit);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < runs; ++i) {
      Word words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) words[j] = halves(x[i][2 * j] * inverse, x[i][2 * j + 1] * inverse);
      *reinterpret_cast<uint4 *>(storage_.rows + column * QueryStorage<HeadDim>::row_stride +
                                 (i * 4 + t) * 8) = {words[0], words[1], words[2], words[3]};
    }
    unit_[0] = __shfl_sync(0xffffffffu, unit, 2 * t * 4);
    unit_[1] = __shfl_sync(0xffffffffu, unit, (2 * t + 1) * 4);
    __syncwarp();
    faces_ = false;
  }

  /// Turns the queries back by `base`, unless that is done.
  __device__ void face(long long base) {
    if (!faces_ || turned_by_ != base) turn([base](int) { return base; }, base == 0 ? 0 : 1);
    faces_ = true;
    turned_by_ = base;
  }

  /// Turns `count` equal runs of columns back by base(0), base(1), ...; count is 1, 2 or 4.
  template <class Base>
  __device__ void face(Base &&base, int count) {
    turn(base, count);
    faces_ = false;
  }

  __device__ uint2 turned(int step) const { return storage_.turned[step * warp_lanes + lane_index()]; }
  __device__ float unit(int i) const { return unit_[i]; }

  /// The coordinates in the basis, as B: store(step, b). `matrix` is A^-T. Returns the units of the
  /// lane's columns.
  template <class Store>
  __device__ float2 transform_to_basis(const uint4 *matrix, Store &&store) const {
    float c[steps][4];
#pragma unroll
    for (int i = 0; i < steps; ++i) c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0;
    matrix += lane_index();
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const uint2 b = turned(step);
#pragma unroll
      for (int i = 0; i < steps; ++i) {
        const uint4 a = matrix[(i * steps + step) * warp_lanes];
        multiply_add(c[i], a.x, a.y, a.z, a.w, b.x, b.y);
      }
    }
    float units[2], inverse[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float largest = 0;
#pragma unroll
      for (int i = 0; i < steps; ++i)
        largest = fmaxf(largest, fmaxf(fabsf(c[i][j]), fabsf(c[i][j + 2])));
      units[j] = unit_above(largest_row(largest));
      inverse[j] = inverse_of_power(units[j]);
    }
#pragma unroll
    for (int i = 0; i < steps; ++i) store(i, columns_of(c[i], inverse[0], inverse[1]));
    return {units[0], units[1]};
  }

  /// The weights of the mean key's modes, as B, which float16 holds as they come: store(tile, b).
  /// `matrix` is the projection.
  template <class Store>
  __device__ void transform_to_modes(const uint4 *matrix, int tiles, Store &&store) const {
    matrix += lane_index();
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile, matrix += steps * warp_lanes) {
      float c[4] = {0, 0, 0, 0};
#pragma unroll 4
      for (int step = 0; step < steps; ++step) {
        const uint4 a = matrix[step * warp_lanes];
        const uint2 b = turned(step);
        multiply_add(c, a.x, a.y, a.z, a.w, b.x, b.y);
      }
      store(tile, columns_of(c, 1, 1));
    }
  }

 private:
  /// x[i] = the eight elements from 32 i on; in pieces of 16 bytes where they lie so.
  template <class S, int Runs>
  __device__ static void read_runs(const S *from, float (&x)[Runs][8]) {
    constexpr int pieces = 8 * sizeof(S) / sizeof(uint4);
    alignas(uint4) S elements[Runs][8];
    if (reinterpret_cast<std::uintptr_t>(from) % sizeof(uint4) == 0) {
#pragma unroll
      for (int i = 0; i < Runs * pieces; ++i) {
        reinterpret_cast<uint4 *>(elements[i / pieces])[i % pieces] =
            reinterpret_cast<const uint4 *>(from + i / pieces * 32)[i % pieces];
      }
    } else {
#pragma unroll
      for (int i = 0; i < Runs * 8; ++i) elements[i / 8][i % 8] = from[i / 8 * 32 + i % 8];
    }
#pragma unroll
    for (int i = 0; i < Runs * 8; ++i) x[i / 8][i % 8] = static_cast<float>(elements[i / 8][i % 8]);
  }

  /// count: 0 for no turn at all.
  template <class Base>
  __device__ void turn(Base &&base, int count) {
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    const bool turns = count > 0;
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < count; ++i) find_turn(base(i), i);
    __syncwarp();
    const int run = g * count / column_count;
    const float *cosines = storage_.cosines[run], *sines = storage_.sines[run];
    const __half *row = storage_.rows + g * QueryStorage<HeadDim>::row_stride;
    uint2 *to = storage_.turned + lane;
    const auto pair_at = [&](int channel) { return *reinterpret_cast<const Word *>(row + channel); };
    if (!turns) {
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        const int channel = step * 16 + 2 * t;
        to[step * warp_lanes] = {pair_at(channel), pair_at(channel + 8)};
      }
    } else if (!interleaved_ && pairs_ == HeadDim / 2) {  // both halves of a pair are in one lane
#pragma unroll 1
      for (int step = 0; step < steps / 2; ++step) {
        const int channel = step * 16 + 2 * t;
        uint2 first, second;
        turn_halves(pair_at(channel), pair_at(channel + HeadDim / 2), cosines + channel, sines + channel,
                    first.x, second.x);
        turn_halves(pair_at(channel + 8), pair_at(channel + 8 + HeadDim / 2), cosines + channel + 8,
                    sines + channel + 8, first.y, second.y);
        to[step * warp_lanes] = first;
        to[(step + steps / 2) * warp_lanes] = second;
      }
    } else {
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        const int channel = step * 16 + 2 * t;
        to[step * warp_lanes] = {turned_pair(row, channel, cosines, sines),
                                 turned_pair(row, channel + 8, cosines, sines)};
      }
    }
    __syncwarp();
  }

  /// cos and sin of -base times every inverse frequency. Whole turns come off in double precision; what
  /// is left is at most half a turn, of which the fast functions know 2^-20.
  __device__ void find_turn(long long base, int run) {
#pragma unroll 1
    for (int pair = lane_index(); pair < pairs_; pair += warp_lanes) {
      constexpr double inverse_turn = 0.15915494309189535;  // 1 / 2 pi
      const double turns = static_cast<double>(-base) *
                           (static_cast<double>(tiles_->inverse_frequencies[pair]) * inverse_turn);
      const float angle = 6.2831853f * static_cast<float>(turns - rint(turns));
      storage_.sines[run][pair] = __sinf(angle);
      storage_.cosines[run][pair] = __cosf(angle);
    }
  }

  /// Two neighbours of the first half of the channels, and those half of them on.
  __device__ static void turn_halves(Word a, Word b, const float *cosines, const float *sines,
                                     Word &first, Word &second) {
    const float2 x = __half22float2(as_halves(a)), y = __half22float2(as_halves(b));
    const float2 c = *reinterpret_cast<const float2 *>(cosines);
    const float2 s = *reinterpret_cast<const float2 *>(sines);
    first = halves(x.x * c.x - y.x * s.x, x.y * c.y - y.y * s.y);
    second = halves(y.x * c.x + x.x * s.x, y.y * c.y + x.y * s.y);
  }

  /// Channels c and c + 1 of a row, c even, turned. Their pairs are neighbours too, but where halves of
  /// an odd number of pairs meet.
  __device__ Word turned_pair(const __half *row, int channel, const float *cosines,
                              const float *sines) const {
    const int pairs = pairs_;
    const float2 x = __half22float2(*reinterpret_cast<const __half2 *>(row + channel));
    if (interleaved_) {
      if (channel >= 2 * pairs) return halves(x.x, x.y);
      const float c = cosines[channel / 2], s = sines[channel / 2];
      return halves(x.x * c - x.y * s, x.x * s + x.y * c);
    }
    if (pairs % 2 != 0)
      return halves(turned_half(row, channel, x.x, cosines, sines),
                    turned_half(row, channel + 1, x.y, cosines, sines));
    if (channel >= 2 * pairs) return halves(x.x, x.y);
    const bool low = channel < pairs;
    const int pair = low ? channel : channel - pairs;
    const float2 y =
        __half22float2(*reinterpret_cast<const __half2 *>(row + (low ? channel + pairs : pair)));
    const float2 c = *reinterpret_cast<const float2 *>(cosines + pair);
    float2 s = *reinterpret_cast<const float2 *>(sines + pair);
    if (low) s = {-s.x, -s.y};
    return halves(x.x * c.x + y.x * s.x, x.y * c.y + y.y * s.y);
  }
  __device__ float turned_half(const __half *row, int channel, float x, const float *cosines,
                               const float *sines) const {
    if (channel >= 2 * pairs_) return x;
    const int pair = channel % pairs_;
    const float c = cosines[pair], s = sines[pair];
    return channel < pairs_ ? x * c - __half2float(row[channel + pairs_]) * s
                            : __half2float(row[channel - pairs_]) * s + x * c;
  }

  /// A tile of C as B of 16 rows.
  __device__ static uint2 columns_of(const float (&c)[4], float first, float second) {
    return {transpose(halves(c[0] * first, c[1] * second)),
            transpose(halves(c[2] * first, c[3] * second))};
  }

  QueryStorage<HeadDim> &storage_;
  const TileTables *tiles_;
  int pairs_;
  bool interleaved_;
  float unit_[2];
  bool faces_ = false;
  long long turned_by_ = 0;
};

}  // namespace squat::cuda
