#pragma once

// Float weights times packed codes, for several rows: rounds the weights to
// integers and mends what can be mended of the rounding.
//
//   sum_i weight_i code_i
//     = sum_i rounded_i code_i + middle sum_i (weight_i - rounded_i) + error,
//   error = sum_i (weight_i - rounded_i) (code_i - middle),
//
// middle being that of the codes' range. Without the second term the error
// would be twice as large.

#include <cstdint>

#include "squat/cpu/dot_codes.hpp"
#include "squat/cpu/round_weights.hpp"
#include "squat/cpu/row_blocks.hpp"
#include "squat/cpu/workspace.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// The weights of `row_count` rows, and memory for what they are rounded to.
struct CodeWeights {
  CodeWeights(Index rows, Index most, Scratch &scratch)
      : row_count(rows),
        weights{scratch.take<float>(rows * most), most},
        constants(scratch.take<float>(rows)),
        rounded{scratch.take<std::int8_t>(2 * rows * most), most},
        multipliers(scratch.take<float>(2 * rows)),
        rests(scratch.take<float>(rows)) {}

  static std::size_t scratch_bytes(Index rows, Index most) {
    return Scratch::bytes<float>(rows * most) + 2 * Scratch::bytes<float>(rows) +
           Scratch::bytes<std::int8_t>(2 * rows * most) + Scratch::bytes<float>(2 * rows);
  }

  /// Rounds the weights [first, first + count) of all rows for codes of that
  /// width. They are used up.
  void round(Index first, Index count, int bits) {
    const RowView<float> used{weights.data + first, weights.stride};
    if (weight_terms(bits) == 1) {
      round_weights(used, row_count, count, most_weight(bits), rounded, multipliers, rests);
    } else {
      round_weights<true>(used, row_count, count, most_weight(bits), rounded, multipliers, rests);
      round_fractions(used, row_count, count, {rounded[row_count], rounded.stride}, multipliers,
                      multipliers + row_count, rests);
    }
    for (Index row = 0; row < row_count; ++row) constants[row] += middle_code(bits) * rests[row];
  }

  /// sums[r][lane] += sum_i weight[r][i] code[lane][i] over the lanes [first,
  /// first + count), but for the constants, with the weights rounded last.
  void accumulate(const PackedCodes &codes, Index first, Index count, RowView<float> sums) const {
    for (int term = 0; term < weight_terms(codes.bits); ++term) {
      accumulate_codes(codes, first, count, row_count, {rounded[term * row_count], rounded.stride},
                       multipliers + term * row_count, sums);
    }
  }

  /// sums[r][0 ... count) += constants[r].
  void add_constants(Index count, RowView<float> sums) const {
    for (Index row = 0; row < row_count; ++row) {
      for (Index i = 0; i < count; ++i) sums[row][i] += constants[row];
    }
  }

  Index row_count;
  RowView<float> weights;        // [row_count, most]
  float *constants;              // [row_count]
  RowView<std::int8_t> rounded;  // [terms, row_count, most]
  float *multipliers;            // [terms, row_count]
  float *rests;                  // [row_count], what rounding left
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
