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

/// Whether weights may be negative. Bytes without a sign round twice as finely.
enum class WeightSign { any, none };

/// The weights of `row_count` rows, and memory for what they are rounded to.
class CodeWeights {
 public:
  CodeWeights(Index rows, Index most, Scratch &scratch)
      : row_count(rows),
        weights{scratch.take<float>(rows * most), most},
        constants(scratch.take<float>(rows)),
        rounded_{scratch.take<std::int8_t>(2 * rows * most), most},
        multipliers_(scratch.take<float>(2 * rows)),
        rests_(scratch.take<float>(rows)) {}

  static std::size_t scratch_bytes(Index rows, Index most) {
    return Scratch::bytes<float>(rows * most) + 2 * Scratch::bytes<float>(rows) +
           Scratch::bytes<std::int8_t>(2 * rows * most) + Scratch::bytes<float>(2 * rows);
  }

  /// sums[r][lane] += sum_i weight[r][first + i] code[lane][i] over the lanes
  /// [lane, lane + count), but for what is added to the constants. Those weights
  /// are used up.
  template <WeightSign Sign>
  void accumulate(Index first, const PackedCodes &codes, Index lane, Index count, RowView<float> sums) {
    const RowView<float> used{weights.data + first, weights.stride};
    if (weight_terms(codes.bits) == 2) {
      add_two_terms(used, codes, lane, count, sums);
    } else if constexpr (Sign == WeightSign::none) {
      const RowView<std::uint8_t> bytes{reinterpret_cast<std::uint8_t *>(rounded_.data),
                                        rounded_.stride};
      add_term(used, most_unsigned_weight, bytes, codes, lane, count, sums);
    } else {
      add_term(used, most_weight(codes.bits), rounded_, codes, lane, count, sums);
    }
    for (Index row = 0; row < row_count; ++row) constants[row] += middle_code(codes.bits) * rests_[row];
  }

  /// sums[r][0 ... count) += constants[r].
  void add_constants(Index count, RowView<float> sums) const {
    for (Index row = 0; row < row_count; ++row) {
      for (Index i = 0; i < count; ++i) sums[row][i] += constants[row];
    }
  }

  Index row_count;
  RowView<float> weights;  ///< [row_count, most]
  float *constants;        ///< [row_count]

 private:
  template <class Weight>
  void add_term(RowView<float> used, int most, RowView<Weight> rounded, const PackedCodes &codes,
                Index lane, Index count, RowView<float> sums) {
    round_weights(used, row_count, codes.inner, most, rounded, multipliers_, rests_);
    accumulate_codes<Weight>(codes, lane, count, row_count, {rounded.data, rounded.stride}, multipliers_,
                             {sums, row_count});
  }

  /// Both terms at once: what is loaded serves both.
  void add_two_terms(RowView<float> used, const PackedCodes &codes, Index lane, Index count,
                     RowView<float> sums) {
    const RowView<std::int8_t> second{rounded_[row_count], rounded_.stride};
    round_weights<true>(used, row_count, codes.inner, most_weight(codes.bits), rounded_, multipliers_,
                        rests_);
    round_fractions(used, row_count, codes.inner, second, multipliers_, multipliers_ + row_count,
                    rests_);
    accumulate_codes<std::int8_t>(codes, lane, count, 2 * row_count, {rounded_.data, rounded_.stride},
                                  multipliers_, {sums, row_count});
  }

  RowView<std::int8_t> rounded_;  // [terms, row_count, most]
  float *multipliers_;            // [terms, row_count]
  float *rests_;                  // [row_count], what rounding left
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
