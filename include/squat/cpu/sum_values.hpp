#pragma once

// Sums of exact value rows weighted by attention probabilities. Packed values
// go through accumulate_codes.

#include <cstring>

#include "squat/cpu/vector.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// outputs[r] += sum_t weights[r][t] * values[t]. weights: [rows,
/// weight_stride]; values: `tokens` rows of `channels` elements, `value_stride`
/// apart; outputs: [rows, output_stride] floats.
template <Element Scalar>
void sum_rows(const float *weights, Index weight_stride, Index rows, const Scalar *values,
              Index value_stride, Index tokens, float *outputs, Index channels, Index output_stride) {
  for_row_blocks(rows, [&]<int Rows>(Index row) {
    for (Index i = 0; i < channels; i += lanes) {
      FloatLanes sums[Rows];
      for (int r = 0; r < Rows; ++r) load(outputs + (row + r) * output_stride + i, sums[r]);
      for (Index token = 0; token < tokens; ++token) {
        FloatLanes value;
        load_row(values + token * value_stride + i, value);
        const float *weight = weights + row * weight_stride + token;
        for (int r = 0; r < Rows; ++r) sums[r] += weight[r * weight_stride] * value;
      }
      for (int r = 0; r < Rows; ++r) {
        std::memcpy(outputs + (row + r) * output_stride + i, &sums[r], sizeof sums[r]);
      }
    }
  });
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
