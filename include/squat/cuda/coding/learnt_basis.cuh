#pragma once

// What the device and the host tell each other of a head's subspace basis.

#include <cstdint>

namespace squat::cuda {

/// What a head has learnt. See RoundedMatrix, SubspaceBasis and Evidence.
template <int HeadDim>
struct LearntBasis {
  // A^-T, [coordinate, channel], rounded to bytes or to words, as the call says.
  alignas(16) std::int16_t codes[HeadDim * HeadDim];
  float scales[HeadDim];        ///< not finite where nothing can be learnt
  float input_scales[HeadDim];  ///< of bytes

  float metric[HeadDim];
  double variance[HeadDim];  ///< falling
  double mean[HeadDim];      ///< of keys as row 0 of a tile has them
  double value_sum[HeadDim];
  double weight;
  double key_directions, key_rank, query_rank;
};

}  // namespace squat::cuda
