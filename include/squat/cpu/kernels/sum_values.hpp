#pragma once

// Sums of the values of a packed page, weighted by attention probabilities.
//
//   output_c = sum_t p_t (zero_t + scale_t code_tc)
//            = sum_t (p_t scale_t) code_tc + sum_t p_t zero_t
//
// with zero_t = -scale_t * middle for symmetric values, whose output stays in
// the rotated space; trellis codes count from there.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "squat/cpu/head_coding.hpp"
#include "squat/cpu/kernels/float_vector.hpp"
#include "squat/cpu/kernels/prefetch.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"
#include "squat/cpu/kernels/weighted_codes.hpp"
#include "squat/cpu/page_layout.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Makes probabilities the weights of a page's codes of `bits` bits: those that share scale
/// `index` of a value. probabilities: [rows, group], 0 for tokens that do not count.
template <class Layout>
void weigh_values(const Layout &layout, int bits, std::byte *page, Index head, Index index,
                  RowView<const float> probabilities, CodeWeights &scratch, std::ptrdiff_t ahead = 0) {
  const Index group = layout.group, rows = scratch.row_count;
  const bool plain = layout.value_coding == ValueCoding::plain;
  const Codes kind = layout.value_codes(bits);
  const float middle = middle_of(kind, bits, WeightSign::none);
  const half *scales = layout.value_scales_row(page, head, index);
  const half *zeros = layout.value_zeros_row(page, head, index);
  prefetch_ahead_all(scales, group, ahead);
  if (plain) prefetch_ahead_all(zeros, group, ahead);
  for_row_blocks(rows, [&]<int RowCount>(Index row) {
    FloatVector sums[4], most[4];  // of the weights, or of what zeros add; of the weights
    SQUAT_UNROLL(16)
    for (int r = 0; r < 4; ++r) sums[r] = most[r] = broadcast(0);
    for (Index token = 0; token < group; token += float_lanes) {
      const FloatVector scale = load_floats(scales + token);
      const FloatVector zero = plain ? load_floats(zeros + token) : scale;
      SQUAT_UNROLL(16)
      for (int r = 0; r < RowCount; ++r) {
        const FloatVector probability = load_floats(probabilities[row + r] + token);
        const FloatVector weight = probability * scale;
        store_floats(scratch.weights[row + r] + token, weight);
        most[r] = greater_of(most[r], weight);
        sums[r] = multiply_add(probability, zero, sums[r]);
      }
    }
    float totals[4], largest[4];
    sum_each(sums, totals);
    largest_of_each(most, largest);
    std::copy_n(largest, RowCount, scratch.largest[0] + row);
    for (int r = 0; r < RowCount; ++r) {
      scratch.constants[row + r] = (plain ? 1.0f : -middle) * totals[r];
    }
  });
  // Probabilities and the scales of values have no sign.
  scratch.round<WeightSign::none>(0, 0, bits, group, scratch.largest[0], kind);
}

/// outputs[r] += sum over all tokens of a page of probability times value, for the
/// channels that share scale `index`, with the weights that weigh_values() left.
template <class Layout>
void sum_values(const Layout &layout, const HeadCodes &codes, Index index, CodeWeights &scratch,
                RowView<float> outputs, std::ptrdiff_t ahead = 0) {
  const Index d = layout.head_dim, run = d / layout.scales_of_a_value;
  const auto *packed = codes.value_codes<std::uint8_t>();
  scratch.accumulate<WeightSign::none>(
      0, 0, {codes.value_bits, packed, d, layout.group, ahead, layout.value_codes(codes.value_bits)},
      index * run, run, {outputs.data + index * run, outputs.stride});
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
