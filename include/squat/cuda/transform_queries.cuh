#pragma once

// The queries of a column tile as pages see them: turned back by a tile's base, in the subspace basis, and
// as weights of the mean key's modes.
//
// Eight query rows that share a KV head are the columns of B (fragments.cuh); channels are its rows. Float16
// holds numbers below 1, so each column is divided by a power of two, its unit:
//
//   q = query * attention scale * log2 e = unit_q * stored
//   A^-T R(-base) q = unit_q unit_basis * stored,  projection R(-base) q = unit_q projection_unit * stored
//
// A transform is HeadDim^2 multiply-adds a column, once for the pages of a tile; its matrix comes from the
// caches, 2 HeadDim^2 bytes.

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/cuda/device_state.cuh"
#include "squat/cuda/fragments.cuh"
#include "squat/cuda/warp.cuh"

namespace squat::cuda {

/// Units of keys at each width, in their order; all others have no codes.
struct UnitRuns {
  int eight = 0, four = 0, two = 0;
};

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
      : storage_(storage),
        head_(head),
        tiles_(tiles),
        pairs_(tiles->pairs),
        interleaved_(tiles->interleaved != 0) {}

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
      storage().rows[column * QueryStorage<HeadDim>::row_stride + c] = __float2half_rn(x);
    }
    unit_[0] = __shfl_sync(0xffffffffu, unit, 2 * t * 4);
    unit_[1] = __shfl_sync(0xffffffffu, unit, (2 * t + 1) * 4);
    __syncwarp();
    entered_ = false;
    turn(0);
  }

  /// Turns the queries back by `base`, and transforms them for packed pages, unless that is done.
  __device__ void enter(long long base) {
    face(base);
    if (entered_ && base == base_) return;
    basis_unit_[0] = basis_unit_[1] = 1;
    if (head_->basis != nullptr) transform_to_basis();
    if (has_mean()) transform_to_modes();
    entered_ = true;
    base_ = base;
    __syncwarp();
  }

  /// Turns the queries back by `base`, unless that is done: for rows that no coding holds.
  __device__ void face(long long base) {
    if (base != turned_by_) turn(base);
  }

  __device__ uint2 turned(int step) const { return storage().turned[step * warp_lanes + lane_index()]; }
  __device__ uint2 modes(int tile) const { return storage().modes[tile * warp_lanes + lane_index()]; }
  /// The rows that meet a page's codes: in the basis, or turned alone.
  __device__ const uint2 *facing(bool in_basis) const {
    return (in_basis ? storage().basis : storage().turned) + lane_index();
  }

  __device__ UnitRuns runs() const { return {head_->eight_bit_units, head_->four_bit_units, head_->two_bit_units}; }
  __device__ float unit(int i) const { return unit_[i]; }
  __device__ float basis_unit(int i) const { return basis_unit_[i]; }
  __device__ bool has_mean() const { return head_->projection != nullptr; }
  __device__ const HeadTables &head() const { return *head_; }
  __device__ const TileTables &tiles() const { return *tiles_; }

 private:
  /// What the compiler does not see through the reference.
  __device__ QueryStorage<HeadDim> &storage() const {
    __builtin_assume(__isShared(&storage_));
    return storage_;
  }

  __device__ void turn(long long base) {
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    if (base != 0) find_turn(base);
    const __half *row = storage().rows + g * QueryStorage<HeadDim>::row_stride;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const int channel = step * 16 + 2 * t;
      uint2 pairs;
      if (base == 0) {
        pairs = {*reinterpret_cast<const Word *>(row + channel), *reinterpret_cast<const Word *>(row + channel + 8)};
      } else {
        pairs = {turned_pair(row, channel), turned_pair(row, channel + 8)};
      }
      storage().turned[step * warp_lanes + lane] = pairs;
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
      float sine, cosine;
      sincospif(2 * static_cast<float>(turns - rint(turns)), &sine, &cosine);
      storage().sines[pair] = sine;
      storage().cosines[pair] = cosine;
    }
    __syncwarp();
  }

  /// Channels c and c + 1 of a row, c even, turned. Their pairs are neighbours too, but where halves of an odd
  /// number of pairs meet.
  __device__ Word turned_pair(const __half *row, int channel) const {
    const int pairs = pairs_;
    const float2 x = __half22float2(*reinterpret_cast<const __half2 *>(row + channel));
    if (interleaved_) {
      if (channel >= 2 * pairs) return halves(x.x, x.y);
      const float c = storage().cosines[channel / 2], s = storage().sines[channel / 2];
      return halves(x.x * c - x.y * s, x.x * s + x.y * c);
    }
    if (pairs % 2 != 0) return halves(turned_half(row, channel, x.x), turned_half(row, channel + 1, x.y));
    if (channel >= 2 * pairs) return halves(x.x, x.y);
    const bool low = channel < pairs;
    const int pair = low ? channel : channel - pairs;
    const float2 y = __half22float2(*reinterpret_cast<const __half2 *>(row + (low ? channel + pairs : pair)));
    const float2 c = *reinterpret_cast<const float2 *>(storage().cosines + pair);
    float2 s = *reinterpret_cast<const float2 *>(storage().sines + pair);
    if (low) s = {-s.x, -s.y};
    return halves(x.x * c.x + y.x * s.x, x.y * c.y + y.y * s.y);
  }
  __device__ float turned_half(const __half *row, int channel, float x) const {
    if (channel >= 2 * pairs_) return x;
    const int pair = channel % pairs_;
    const float c = storage().cosines[pair], s = storage().sines[pair];
    return channel < pairs_ ? x * c - __half2float(row[channel + pairs_]) * s
                            : __half2float(row[channel - pairs_]) * s + x * c;
  }

  /// B of the coordinates in the basis. A column's unit is found from what it holds.
  __device__ void transform_to_basis() {
    float c[steps][4];
#pragma unroll
    for (int i = 0; i < steps; ++i) c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0;
    const uint4 *matrix = head_->basis + lane_index();
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const uint2 b = turned(step);
#pragma unroll
      for (int i = 0; i < steps; ++i) {
        const uint4 a = __ldg(matrix + (i * steps + step) * warp_lanes);
        multiply_add(c[i], a.x, a.y, a.z, a.w, b.x, b.y);
      }
    }
    float inverse[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float largest = 0;
#pragma unroll
      for (int i = 0; i < steps; ++i) largest = fmaxf(largest, fmaxf(fabsf(c[i][j]), fabsf(c[i][j + 2])));
      basis_unit_[j] = unit_above(largest_row(largest));
      inverse[j] = inverse_of_power(basis_unit_[j]);
    }
#pragma unroll
    for (int i = 0; i < steps; ++i) {
      storage().basis[i * warp_lanes + lane_index()] = columns_of(c[i], inverse[0], inverse[1]);
    }
  }

  /// B of the weights of the mean key's modes, which float16 holds as they come.
  __device__ void transform_to_modes() {
    const uint4 *matrix = head_->projection + lane_index();
    for (int tile = 0; tile < head_->mode_tiles; ++tile, matrix += steps * warp_lanes) {
      float c[4] = {0, 0, 0, 0};
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        const uint4 a = __ldg(matrix + step * warp_lanes);
        const uint2 b = turned(step);
        multiply_add(c, a.x, a.y, a.z, a.w, b.x, b.y);
      }
      storage().modes[tile * warp_lanes + lane_index()] = columns_of(c, 1, 1);
    }
  }

  /// A tile of C as B of 16 rows.
  __device__ static uint2 columns_of(const float (&c)[4], float first, float second) {
    return {transpose(halves(c[0] * first, c[1] * second)), transpose(halves(c[2] * first, c[3] * second))};
  }

  QueryStorage<HeadDim> &storage_;
  const HeadTables *head_;
  const TileTables *tiles_;
  int pairs_;
  bool interleaved_;
  float unit_[2];
  float basis_unit_[2];
  long long base_ = 0;       // of enter()
  long long turned_by_ = 0;  // of turn()
  bool entered_ = false;
};

}  // namespace squat::cuda
