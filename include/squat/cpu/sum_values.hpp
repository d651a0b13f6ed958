#pragma once

// Sums of the values of a packed page, weighted by attention probabilities.
//
//   output_c = sum_t p_t (zero_t + scale_t code_tc)
//            = sum_t (p_t scale_t) code_tc + sum_t p_t zero_t
//
// with zero_t = -scale_t * middle for symmetric values, whose output stays in
// the rotated space.

#include <cstddef>
#include <cstdint>

#include "squat/cpu/float_vector.hpp"
#include "squat/cpu/page_layout.hpp"
#include "squat/cpu/prefetch.hpp"
#include "squat/cpu/row_blocks.hpp"
#include "squat/cpu/weighted_codes.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// outputs[r] += sum over all tokens of a page of probability times value.
/// probabilities: [rows, group], 0 for tokens that do not count.
template <int KeyBits, int ValueBits>
void sum_values(const PageLayout<KeyBits, ValueBits> &layout, std::byte *page, Index head,
                RowView<const float> probabilities, RowView<float> outputs, CodeWeights &scratch,
                std::ptrdiff_t ahead = 0) {
  const Index d = layout.head_dim, group = layout.group, rows = scratch.row_count;
  const Index run = d / layout.scales_of_a_value;
  const bool plain = layout.value_coding == ValueCoding::plain;
  const auto *packed = layout.template values<std::uint8_t>(page, head);
  for (Index i = 0; i < layout.scales_of_a_value; ++i) {
    const half *scales = layout.value_scales_row(page, head, i);
    const half *zeros = layout.value_zeros_row(page, head, i);
    prefetch_ahead_all(scales, group, ahead);
    if (plain) prefetch_ahead_all(zeros, group, ahead);
    for_row_blocks(rows, [&]<int RowCount>(Index row) {
      FloatVector sums[RowCount];  // of the weights, or of what zeros add
      SQUAT_UNROLL(16)
      for (auto &sum : sums) sum = broadcast(0);
      for (Index token = 0; token < group; token += float_lanes) {
        const FloatVector scale = load_floats(scales + token);
        const FloatVector zero = plain ? load_floats(zeros + token) : scale;
        SQUAT_UNROLL(16)
        for (int r = 0; r < RowCount; ++r) {
          const FloatVector probability = load_floats(probabilities[row + r] + token);
          store_floats(scratch.weights[row + r] + token, probability * scale);
          sums[r] = multiply_add(probability, zero, sums[r]);
        }
      }
      for (int r = 0; r < RowCount; ++r) {
        scratch.constants[row + r] = (plain ? 1.0f : -middle_code(ValueBits)) * sum_lanes(sums[r]);
      }
    });
    const RowView<float> channels{outputs.data + i * run, outputs.stride};
    // Probabilities and the scales of values have no sign.
    scratch.accumulate<WeightSign::none>(0, {ValueBits, packed, d, group, ahead}, i * run, run,
                                         channels);
    scratch.add_constants(run, channels);
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
