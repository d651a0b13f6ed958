#pragma once

// The exponentials of a run of scores.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "squat/coding/chunks.hpp"
#include "squat/cpu/kernels/float_vector.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"
#include "squat/cpu/softmax_state.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// 2^x for finite x <= 60, to 3e-7 of it; below -125 at most what -125 gives.
///
/// x = n + r with |r| <= 1 / 2; 2^r by the polynomial that meets it at the six Chebyshev
/// nodes of that interval, pairs of its terms side by side; times 2^n by an addition to the
/// exponent.
inline FloatVector power_of_two(FloatVector x) {
  const auto polynomial = [](FloatVector r) {
    const auto pair = [r](float a, float b) { return multiply_add(broadcast(b), r, broadcast(a)); };
    const FloatVector square = r * r;
    const FloatVector rest =
        multiply_add(pair(0.00967608998f, 0.00133909208f), square, pair(0.240221064f, 0.0555035701f));
    return multiply_add(rest, square, pair(1.00000008f, 0.693147188f));
  };
#if defined(SQUAT_CPU_AVX512)
  const __m512 n = _mm512_roundscale_ps(x, 0);
  return _mm512_scalef_ps(polynomial(x - n), n);
#else
  x = greater_of(x, broadcast(-125));
  typedef std::uint32_t Words __attribute__((vector_size(sizeof(FloatVector))));
  const FloatVector shifted = x + broadcast(integer_bits);
  FloatVector power = polynomial(x - (shifted - broadcast(integer_bits)));
  Words bits, steps;
  std::memcpy(&bits, &power, sizeof bits);
  std::memcpy(&steps, &shifted, sizeof steps);
  bits += steps << 23;
  std::memcpy(&power, &bits, sizeof power);
  return power;
#endif
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
  fill_others(std::numeric_limits<float>::lowest() / 4);  // finite, and so is what becomes of it
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
  // Others add 2^-125 each at most, which is nothing beside the maximum's share.
  constexpr float log2_e = 1.44269504f;
  for (Index i = 0; i < end; i += float_lanes) {
    SQUAT_UNROLL(16)
    for (int row = 0; row < RowCount; ++row) {
      const FloatVector below = load_floats(scores[row] + i) - broadcast(states[row].maximum);
      const FloatVector power = power_of_two(below * broadcast(log2_e));
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
