#pragma once

// The exponentials of a run of scores.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "squat/attention/softmax_state.hpp"
#include "squat/cpu/float_vector.hpp"
#include "squat/cpu/row_blocks.hpp"
#include "squat/quantize/chunks.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// e^x for x <= 0, to 2 units in the last place; below -87 what -87 gives.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts so that r is exact;
/// e^r by its Taylor series up to r^7 / 7!; times 2^n by an addition to the
/// exponent.
inline FloatVector exponential(FloatVector x) {
  typedef std::uint32_t Words __attribute__((vector_size(sizeof(FloatVector))));
  constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  x = greater_of(x, broadcast(-87));
  const FloatVector shifted = multiply_add(x, broadcast(1.44269504f), broadcast(integer_bits));
  const FloatVector n = shifted - broadcast(integer_bits);
  FloatVector r = multiply_add(n, broadcast(-ln2_high), x);
  r = multiply_add(n, broadcast(-ln2_low), r);
  FloatVector power = broadcast(1.0f / 5040);
  for (float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f}) {
    power = multiply_add(power, r, broadcast(coefficient));
  }
  Words bits, steps;
  std::memcpy(&bits, &power, sizeof bits);
  std::memcpy(&steps, &shifted, sizeof steps);
  bits += steps << 23;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

/// Takes in the scores [first, first + count) of `RowCount` rows of `capacity`, a
/// multiple of float_lanes: they become exp(score - maximum), all others of the
/// row 0. factors: by which what was accumulated before has to be multiplied. Rows
/// go side by side, since each step of a power waits for the last.
template <int RowCount>
inline void exponentiate(SoftmaxState *states, RowView<float> scores, Index first, Index count,
                         Index capacity, float *factors) {
  if (count == 0) {
    for (int row = 0; row < RowCount; ++row) {
      std::fill_n(scores[row], capacity, 0.0f);
      factors[row] = 1;
    }
    return;
  }
  const Index last = first + count, end = (last + float_lanes - 1) / float_lanes * float_lanes;
  const auto fill_others = [&](float value) {
    for (int row = 0; row < RowCount; ++row) {
      std::fill_n(scores[row], first, value);
      std::fill(scores[row] + last, scores[row] + end, value);
    }
  };
  fill_others(-std::numeric_limits<float>::infinity());
  FloatVector largest[RowCount], sums[RowCount];
  SQUAT_UNROLL(16)
  for (int row = 0; row < RowCount; ++row) largest[row] = load_floats(scores[row]);
  for (Index i = float_lanes; i < end; i += float_lanes) {
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      largest[row] = greater_of(largest[row], load_floats(scores[row] + i));
    }
  }
  for (int row = 0; row < RowCount; ++row) {
    factors[row] = states[row].raise(largest_lane(largest[row]));
    sums[row] = broadcast(0);
  }
  // Others add e^-87 each, which is nothing beside the maximum's share.
  for (Index i = 0; i < end; i += float_lanes) {
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      const FloatVector power =
          exponential(load_floats(scores[row] + i) - broadcast(states[row].maximum));
      store_floats(scores[row] + i, power);
      sums[row] = sums[row] + power;
    }
  }
  for (int row = 0; row < RowCount; ++row) states[row].sum += sum_lanes(sums[row]);
  fill_others(0.0f);
  for (int row = 0; row < RowCount; ++row) {
    std::fill(scores[row] + end, scores[row] + capacity, 0.0f);
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
