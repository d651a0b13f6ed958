#pragma once

// integer_matrix.hpp in plain C++: the reference of every other version.

#include <cstdint>

#include "squat/cpu/row_blocks.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// The products of one block of 16 outputs with `RowCount` rows.
template <int RowCount>
void multiply_pairs(const std::int16_t *entries, Index inputs, RowView<const std::int16_t> x,
                    const float *steps, const float *scales, RowView<float> result) {
  for (int row = 0; row < RowCount; ++row) {
    std::int32_t sums[lanes] = {};
    for (Index input = 0; input < inputs; ++input) {
      const std::int16_t *pair = entries + input / 2 * lanes * 2 + input % 2;
      for (Index lane = 0; lane < lanes; ++lane) sums[lane] += x[row][input] * pair[lane * 2];
    }
    for (Index lane = 0; lane < lanes; ++lane) {
      result[row][lane] = steps[row] * scales[lane] * static_cast<float>(sums[lane]);
    }
  }
}

/// The products of `outputs` outputs, a multiple of 16.
template <int RowCount>
void multiply_rows(const std::int16_t *entries, Index outputs, Index inputs,
                   RowView<const std::int16_t> x, const float *steps, const float *scales,
                   RowView<float> result) {
  for (Index output = 0; output < outputs; output += lanes) {
    multiply_pairs<RowCount>(entries + output * inputs, inputs, x, steps, scales + output,
                             {result.data + output, result.stride});
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
