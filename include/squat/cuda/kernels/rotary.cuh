#pragma once

// The rotary embedding in device code, see coding/rotary.hpp.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// The two channels of a pair.
__device__ inline int2 pair_channels(const TileTables &tables, int pair) {
  return tables.interleaved ? int2{2 * pair, 2 * pair + 1} : int2{pair, pair + tables.pairs};
}

/// Cosine and sine of R(position) for one pair. Whole turns are taken off in double precision; what is
/// left is at most half a turn.
__device__ inline float2 turn_angle(const TileTables &tables, int pair, long long position) {
  constexpr double turn = 6.283185307179586476925286766559;
  const double turns =
      static_cast<double>(position) * static_cast<double>(tables.inverse_frequencies[pair]) / turn;
  const auto half_turns = static_cast<float>(2 * (turns - rint(turns)));
  float2 angle;
  sincospif(half_turns, &angle.y, &angle.x);
  return angle;
}

/// Cosine and sine of R(row) for one pair, of a row of the tile frame.
__device__ inline float2 frame_angle(const TileTables &tables, int pair, int row) {
  const float *cosine = tables.angles + 2ll * pair * tables.frame + row;
  return {cosine[0], cosine[tables.frame]};
}

/// Cosine and sine of R(-base), of TileTables::turns; whole turns are lost. Off by 2^-21 at most.
__device__ inline float2 turn_back(std::uint64_t turns, long long base) {
  const auto turned = static_cast<int>(static_cast<std::uint64_t>(base) * turns >> 32);  // 2^-32 of one
  const float angle = static_cast<float>(turned) * (-6.2831853f / 4294967296.0f);
  return {__cosf(angle), __sinf(angle)};
}

/// R(position) of all pairs, by all threads of a block.
__device__ inline void make_turn(const TileTables &tables, long long position, float2 *angles) {
  for (int pair = static_cast<int>(threadIdx.x); pair < tables.pairs;
       pair += static_cast<int>(blockDim.x)) {
    angles[pair] = turn_angle(tables, pair, position);
  }
}

__device__ inline float2 turn_pair(float2 angle, float2 x) {
  return {x.x * angle.x - x.y * angle.y, x.x * angle.y + x.y * angle.x};
}

}  // namespace squat::cuda
