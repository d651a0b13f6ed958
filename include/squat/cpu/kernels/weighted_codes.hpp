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

#include <algorithm>
#include <cstdint>

#include "squat/coding/bit_allocation.hpp"
#include "squat/cpu/kernels/dot_codes.hpp"
#include "squat/cpu/kernels/round_weights.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"
#include "squat/cpu/workspace.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Whether weights may be negative. Bytes without a sign round twice as finely.
enum class WeightSign { any, none };

/// The number that codes count about, where they meet weights that may be negative or not.
constexpr float middle_of(Codes kind, int bits, WeightSign sign) {
  if (kind == Codes::scalar) return middle_code(bits);
  return sign == WeightSign::any ? trellis_middle : 0;
}
static_assert(level_origin<std::int8_t> == -trellis_middle * trellis_unit);
static_assert(level_origin<std::uint8_t> == 0);

/// The weights of `row_count` rows, and memory for what they are rounded to.
class CodeWeights {
 public:
  /// Runs of codes of different widths.
  static constexpr Index most_runs = BitAllocation::most_runs;

  CodeWeights() = default;
  CodeWeights(const CodeKernels &kernels, Index rows, Index most, Scratch &scratch)
      : row_count(rows),
        weights{scratch.take<float>(rows * most), most},
        constants(scratch.take<float>(2 * rows)),
        largest{scratch.take<float>(most_runs * rows), rows},
        rounded_{scratch.take<std::int8_t>(2 * rows * most), most},
        multipliers_{scratch.take<float>(most_runs * 2 * rows), 2 * rows},
        rests_(scratch.take<float>(rows)),
        kernels_(&kernels) {
    std::fill_n(constants, 2 * rows, 0.0f);
  }

  static std::size_t scratch_bytes(Index rows, Index most) {
    return Scratch::bytes<float>(rows * most) + Scratch::bytes<float>(rows) +
           Scratch::bytes<float>(most_runs * rows) + Scratch::bytes<std::int8_t>(2 * rows * most) +
           Scratch::bytes<float>(2 * rows) + Scratch::bytes<float>(most_runs * 2 * rows);
  }

  /// Rounds the weights [first, first + inner), of run `run` of codes, and adds what
  /// mends the rounding to the constants. They are used up. magnitudes: the
  /// greatest of each row, or null.
  template <WeightSign Sign>
  void round(Index run, Index first, int bits, Index inner, const float *magnitudes = nullptr,
             Codes kind = Codes::scalar) {
    const RowView<float> used{weights.data + first, weights.stride};
    const RowView<std::int8_t> rounded{rounded_.data + first, rounded_.stride};
    float *multipliers = multipliers_[run];
    if (weight_terms(bits) == 2) {
      const RowView<std::int8_t> second{rounded[row_count], rounded.stride};
      round_weights<true>(used, row_count, inner, most_weight(bits), rounded, magnitudes, multipliers,
                          rests_);
      round_fractions(used, row_count, inner, second, multipliers, multipliers + row_count, rests_);
    } else if constexpr (Sign == WeightSign::none) {
      round_weights(used, row_count, inner, most_unsigned_weight, without_sign(rounded), magnitudes,
                    multipliers, rests_);
    } else {
      round_weights(used, row_count, inner, most_weight(bits), rounded, magnitudes, multipliers, rests_);
    }
    const float middle = middle_of(kind, bits, Sign);
    for (Index row = 0; row < row_count; ++row) constants[row] += middle * rests_[row];
  }

  /// sums[r][lane] += constants[r] + sum_i weight[r][first + i] code[lane][i] over
  /// the lanes [lane, lane + count), for weights that are rounded. The constants are 0
  /// from then on.
  template <WeightSign Sign>
  void accumulate(Index run, Index first, const PackedCodes &codes, Index lane, Index count,
                  RowView<float> sums) {
    const RowView<std::int8_t> rounded{rounded_.data + first, rounded_.stride};
    const auto add = [&]<class Weight>(const DotPlanes<Weight> &planes, RowView<Weight> weight,
                                       Index rows) {
      accumulate_codes<Weight>(planes, codes, lane, count, rows, {weight.data, weight.stride},
                               {multipliers_[run], constants}, {sums, row_count});
    };
    if (codes.kind == Codes::trellis) {
      SQUAT_ASSERT(lane == 0 && count == codes.rows);
      add_trellis<Sign>(run, codes, rounded, sums);
    } else if (weight_terms(codes.bits) == 2) {
      // Both terms at once: what is loaded serves both.
      add(kernels_->signed_weights, rounded, 2 * row_count);
    } else if constexpr (Sign == WeightSign::none) {
      add(kernels_->unsigned_weights, without_sign(rounded), row_count);
    } else {
      add(kernels_->signed_weights, rounded, row_count);
    }
    std::fill_n(constants, row_count, 0.0f);
  }

  Index row_count = 0;
  RowView<float> weights{};    ///< [row_count, most]
  float *constants = nullptr;  ///< [row_count], and as many zeros, of second terms
  RowView<float> largest{};    ///< [runs, row_count], of magnitudes: for who finds them on the way

 private:
  template <WeightSign Sign>
  void add_trellis(Index run, const PackedCodes &codes, RowView<std::int8_t> rounded,
                   RowView<float> sums) const {
    const TrellisBlock block{codes.data, codes.rows, codes.inner, codes.ahead};
    if constexpr (Sign == WeightSign::none) {
      const RowView<std::uint8_t> bytes = without_sign(rounded);
      kernels_->unsigned_trellis[codes.bits](block, row_count, {bytes.data, bytes.stride},
                                             multipliers_[run], constants, sums);
    } else {
      kernels_->signed_trellis[codes.bits](block, row_count, {rounded.data, rounded.stride},
                                           multipliers_[run], constants, sums);
    }
  }

  static RowView<std::uint8_t> without_sign(RowView<std::int8_t> bytes) {
    return {reinterpret_cast<std::uint8_t *>(bytes.data), bytes.stride};
  }

  RowView<std::int8_t> rounded_{};  // [terms, row_count, most]
  RowView<float> multipliers_{};    // [runs, terms, row_count]
  float *rests_ = nullptr;          // [row_count], what rounding left
  const CodeKernels *kernels_ = nullptr;
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
