#pragma once

// dot_codes.hpp in plain C++: the reference of every other version.

#include <cstddef>
#include <cstdint>

#include "squat/coding/codes.hpp"
#include "squat/cpu/kernels/lane_codes.hpp"
#include "squat/cpu/kernels/prefetch.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Rows and blocks of lanes at a time.
inline constexpr int most_dot_rows = 4;
template <int RowCount>
inline constexpr int dot_blocks = 1;

/// Whether both planes of 3-bit codes meet weights at once.
inline constexpr bool dots_three_bits = false;

/// `RowCount` rows over one block of 16 lanes.
template <int Bits, int RowCount, int Blocks, class Weight>
void dot_lanes(const LaneCodes &of_lanes, std::ptrdiff_t ahead, Index inner,
               RowView<const Weight> weights, const float *multipliers, const float *offsets,
               SumRows accumulated) {
  static_assert(Blocks == 1);
  const std::uint8_t *packed = of_lanes.plane.data;
  constexpr unsigned mask = (1u << Bits) - 1;
  for (Index row = 0; row < RowCount; ++row) {
    std::int32_t sums[lanes] = {};
    for (Index i = 0; i < inner; i += 4) {
      const std::uint8_t *codes = packed + i / block_inner<Bits> * block_bytes;
      const int shift = static_cast<int>(i % block_inner<Bits> / 4) * Bits;
      const Weight *weight = weights[row] + i;
      prefetch_ahead(codes, ahead);
      for (Index l = 0; l < lanes; ++l) {
        for (Index byte = 0; byte < 4; ++byte) {
          sums[l] += weight[byte] * static_cast<int>((codes[l * 4 + byte] >> shift) & mask);
        }
      }
    }
    for (Index l = 0; l < lanes; ++l) {
      accumulated[row][l] += offsets[row] + multipliers[row] * static_cast<float>(sums[l]);
    }
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
