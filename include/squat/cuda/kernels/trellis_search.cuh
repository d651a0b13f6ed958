#pragma once

// Rows of numbers as trellis codes, as TrellisQuantizer codes them (coding/trellis_quantizer.hpp): the
// same formulas in the same order, and the codes of the same search (trellis_path.cuh). The order of a
// sum decides where a number lies so near a tie that the two round it differently.
//
// A warp codes two rows at a time, half a warp each. Rows that err more than Gaussians are searched at
// three other scales: where it is one of the two, the halves share the scales out, two searches one
// after the other instead of three.

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/coding/trellis.hpp"
#include "squat/cuda/kernels/quantize_affine.cuh"
#include "squat/cuda/kernels/trellis_path.cuh"
#include "squat/cuda/kernels/trellis_tables.cuh"
#include "squat/cuda/kernels/warp.cuh"

namespace squat::cuda {

/// What a row's codes stand for, and the squared error that they make.
struct TrellisFit {
  HalfScale scale;
  float error;
};

/// Words of shared memory that a warp needs for rows of `Count` elements, whatever their bits.
template <int Count>
inline constexpr int trellis_scratch_words = TrellisPath<2, Count>::words;

/// The sum over half a warp, in the order that the CPU adds up a chunk.
__device__ inline float sum_half_warp(float x) {
#pragma unroll
  for (int step = half_warp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

__device__ inline float from_lane(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
/// A pointer into shared memory, and known to be one.
template <class T>
__device__ inline T *from_lane(T *x, int lane) {
  const auto own = static_cast<int>(reinterpret_cast<std::uintptr_t>(x));
  return x + (__shfl_sync(0xffffffffu, own, lane) - own) / static_cast<int>(sizeof(T));
}
__device__ inline TrellisFit from_lane(const TrellisFit &fit, int lane) {
  const __half2 scale = as_halves(
      __shfl_sync(0xffffffffu, as_word(__halves2half2(fit.scale.zero, fit.scale.scale)), lane));
  return {{__low2half(scale), __high2half(scale)}, from_lane(fit.error, lane)};
}

/// A row in half a warp. Lane l of the half has its elements l + 16 i.
template <int Bits, int Count, bool AboutMean>
class TrellisRow {
  using Rule = squat::detail::SearchRule<Bits>;

 public:
  __device__ TrellisRow(const float *x, Word *scratch)
      : path_(scratch), lane_(lane_index() % half_warp), x_(x + lane_) {
    static_assert(TrellisPath<Bits, Count>::words <= trellis_scratch_words<Count>);
    if constexpr (AboutMean) mean_ = sum([&](int i) { return x_[i * half_warp]; }) / Count;
    squares_ = sum([&](int i) { return deviation(i) * deviation(i); });
  }

  /// Whether an error is a fifth more than that of Gaussian rows.
  __device__ bool is_odd(float error) const {
    constexpr float usual = 1.2f * Rule::code.error;
    return !(error <= usual * squares_);
  }

  /// Goes on with the row of the half that begins with lane `first`.
  __device__ void take_row_of(int first) {
    x_ = from_lane(x_ - lane_, first) + lane_;
    mean_ = from_lane(mean_, first);
    squares_ = from_lane(squares_, first);
  }

  /// Searches at `factor` times the scale of Gaussians. All lanes of the warp together.
  __device__ TrellisFit search(float factor) {
    constexpr float deviation_of_levels = Rule::code.deviation;
    const float step = factor * sqrtf(squares_ / Count) / deviation_of_levels;  // what a level is worth
    const float inverse = squares_ > 0 ? 1 / step : 0.0f;
    constexpr float most = Rule::most_element, unit = squat::detail::element_steps;
#pragma unroll
    for (int i = 0; i < lane_elements; ++i) {
      path_.element(element(i)) = rintf(fminf(fmaxf(unit * (deviation(i) * inverse), -most), most));
    }
    path_.search();
    decode();
    return fit(2 * step);
  }

  /// Writes the codes of the last search.
  __device__ void write_codes(std::uint8_t *codes) const {
#pragma unroll
    for (int i = 0; i < lane_elements; ++i) codes[element(i)] = codes_[i];
  }

 private:
  static constexpr int lane_elements = Count / half_warp;

  __device__ int element(int i) const { return i * half_warp + lane_; }
  __device__ float deviation(int i) const { return x_[i * half_warp] - mean_; }

  template <class Term>
  __device__ static float sum(Term &&term) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < lane_elements; ++i) sum += term(i);
    return sum_half_warp(sum);
  }

  /// Codes and levels of the search's windows. A lane has the hash and the levels of its number.
  __device__ void decode() {
    constexpr Word all = 0xffffffffu;
    const unsigned hash = device_trellis_index(static_cast<unsigned>(lane_) << 4);
    const float own = trellis_level<Bits, 0>(lane_);
    const float own_high = Bits == 3 ? trellis_level < Bits, Bits == 3 ? 16 : 0 > (lane_) : 0.0f;
#pragma unroll
    for (int i = 0; i < lane_elements; ++i) {
      const unsigned window = path_.window(element(i));
      const unsigned hashed = __shfl_sync(all, hash, static_cast<int>(window >> 4), half_warp);
      const int index = static_cast<int>((window & 15) ^ hashed);
      unsigned code = window & (Word{Rule::choices} - 1);
      levels_[i] = __shfl_sync(all, own, index, half_warp);
      if constexpr (Bits == 3) {
        const float high = __shfl_sync(all, own_high, index, half_warp);
        const float x = path_.element(element(i));
        constexpr float unit = squat::detail::element_steps;
        if (fabsf(x - unit * high) < fabsf(x - unit * levels_[i])) {
          levels_[i] = high;
          code |= 4;
        }
      }
      codes_[i] = static_cast<std::uint8_t>(code);
    }
  }

  /// The zero and the unbiased scale of the levels, and their error; most: what a level is worth at
  /// most.
  __device__ TrellisFit fit(float most) const {
    const float products = sum([&](int i) { return deviation(i) * levels_[i]; });
    const float gain = products > 0 ? fminf(squares_ / products, most) : 0.0f;
    TrellisFit fit{{__ushort_as_half(0), saturated_half(gain * trellis_unit)}, 0};
    const float scale = __half2float(fit.scale.scale), step = scale / trellis_unit;
    float zero = 0;
    if constexpr (AboutMean) {
      const float level_sum = sum([&](int i) { return levels_[i]; });
      const float code = trellis_middle + level_sum / Count / trellis_unit;
      fit.scale.zero = saturated_half(mean_ - scale * code);
      zero = __half2float(fit.scale.zero) + trellis_middle * scale;
    }
    fit.error = sum([&](int i) {
      const float difference = zero + step * levels_[i] - x_[i * half_warp];
      return difference * difference;
    });
    return fit;
  }

  TrellisPath<Bits, Count> path_;
  int lane_;
  const float *x_;  // the lane's first element
  float mean_ = 0, squares_;
  float levels_[lane_elements];
  std::uint8_t codes_[lane_elements];
};

/// Codes two rows of `Count` numbers, a multiple of 32, as TrellisQuantizer::quantize_affine()
/// (AboutMean) or quantize_symmetric() does, by a warp. x, codes: [Count] in shared memory, of the first
/// row in lanes 0 to 15 and of the second in the others, each of which get what belongs to theirs; x is
/// only read. scratch: trellis_scratch_words<Count>, aligned to 16 bytes. The warp's lanes see the codes
/// after a __syncwarp().
template <int Bits, int Count, bool AboutMean>
__device__ inline TrellisFit quantize_two_trellises(const float *x, std::uint8_t *codes, Word *scratch) {
  constexpr Word all = 0xffffffffu;
  const int half = lane_index() / half_warp;
  TrellisRow<Bits, Count, AboutMean> row(x, scratch);
  TrellisFit best{{}, __int_as_float(0x7f800000)}, usual{};
  bool odd = false, shares = false;  // shares: both halves search one row
  float factor = 1;
#pragma unroll 1
  for (int turn = 0;; ++turn) {
    const TrellisFit trial = row.search(factor);
    // Whose search counts: where halves share a row, the first of least error.
    int from = half;
    if (shares) from = from_lane(trial.error, half_warp) < from_lane(trial.error, 0) ? 1 : 0;
    const TrellisFit tried = from_lane(trial, from * half_warp);
    if (tried.error < best.error) {
      best = tried;
      if (from == half) row.write_codes(codes);
    }
    if (turn == 0) {
      usual = best;
      odd = row.is_odd(best.error);
      const Word odd_lanes = __ballot_sync(all, odd);
      if (odd_lanes == 0) break;
      shares = odd_lanes != all;
      if (shares) {
        const int lane = (odd_lanes & 1) != 0 ? 0 : half_warp;
        row.take_row_of(lane);
        codes = from_lane(codes, lane);
        best = from_lane(best, lane);
      }
    } else if (turn == (shares ? 2 : 3)) {
      break;
    }
    const int scale = !shares ? turn : turn == 0 ? half : 2;
    factor = scale == 0 ? .75f : scale == 1 ? 1.35f : 2.0f;
  }
  return odd ? best : usual;
}

}  // namespace squat::cuda
