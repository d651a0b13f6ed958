#pragma once

// Sums of integer weights times the levels of packed trellis codes.
//
//   accumulated[r][row] += offset[r] + multiplier[r] / unit * sum_i weight[r][i] * (level[row][i] -
//   origin)
//
// Weights, rows and what runs over what are those of dot_codes.hpp; origin is level_origin. At most
// 255 * 63 * inner < 2^31. Levels are decoded once for every rows_of_decode rows.

#include <array>
#include <cstddef>
#include <cstdint>

#include "squat/cpu/kernels/byte_vector.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"
#include "squat/cpu/kernels/trellis_levels.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// sums[r][phase] = the sums of products of `RowCount` rows, for the phases that are named.
template <int Bits, int... Phases, int RowCount, class Weight>
[[gnu::always_inline]] inline void sum_phases(const TrellisBlock &block, Index lane,
                                              RowView<const Weight> weights,
                                              SumVector (&sums)[RowCount][4]) {
  constexpr int count = sizeof...(Phases);
  SumVector parts[RowCount][count];
  for (auto &row : parts) {
    for (SumVector &part : row) part = no_sum();
  }
  TrellisLanes<Bits, level_origin<Weight>> lanes(block, lane);
  for (Index i = 0; i < block.inner; i += trellis_inner) {
    const PhaseLevels<count> levels = lanes.template next<Phases...>();
    SQUAT_UNROLL(16)
    for (int r = 0; r < RowCount; ++r) {
      const BytePair weight = {repeat_lane(weights[r] + i), repeat_lane(weights[r] + i + 4)};
      SQUAT_UNROLL(16)
      for (int phase = 0; phase < count; ++phase) {
        const BytePair level = levels.phases[phase];
        add_level_products<Weight>(parts[r][phase], level.first, level.second, weight.first,
                                   weight.second);
      }
    }
  }
  constexpr int phases[] = {Phases...};
  SQUAT_UNROLL(16)
  for (int r = 0; r < RowCount; ++r) {
    SQUAT_UNROLL(16)
    for (int phase = 0; phase < count; ++phase) sums[r][phases[phase]] = parts[r][phase];
  }
}

/// The sum above. weights: [rows, inner]; multipliers, offsets: [rows].
template <int Bits, class Weight>
void dot_trellis(const TrellisBlock &block, Index rows, RowView<const Weight> weights,
                 const float *multipliers, const float *offsets, RowView<float> accumulated) {
  for_row_blocks<rows_of_decode>(rows, [&]<int RowCount>(Index row) {
    for (Index lane = 0; lane < block.rows / 4; lane += vector_lanes) {
      SumVector sums[RowCount][4];
      const RowView<const Weight> of_rows{weights[row], weights.stride};
      if constexpr (phases_of_decode == 4) {
        sum_phases<Bits, 0, 1, 2, 3>(block, lane, of_rows, sums);
      } else {  // those that have something in common
        sum_phases<Bits, 0, 2>(block, lane, of_rows, sums);
        sum_phases<Bits, 1, 3>(block, lane, of_rows, sums);
      }
      for (int r = 0; r < RowCount; ++r) {
        add_four_sums(accumulated[row + r] + lane * 4, sums[r], multipliers[row + r] / trellis_unit,
                      offsets[row + r], block.rows / 4 - lane);
      }
    }
  });
}

/// dot_trellis() by the width of codes. Those that are not named are not compiled.
template <class Weight>
class DotTrellis {
 public:
  template <int... Bits>
  constexpr void add() {
    ((functions_[Bits - 1] = &dot_trellis<Bits, Weight>), ...);
  }

  constexpr auto operator[](int bits) const {
    SQUAT_ASSERT(functions_[static_cast<std::size_t>(bits - 1)] != nullptr);
    return functions_[static_cast<std::size_t>(bits - 1)];
  }

 private:
  using Function = void (*)(const TrellisBlock &, Index, RowView<const Weight>, const float *,
                            const float *, RowView<float>);
  std::array<Function, most_trellis_bits> functions_{};
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
