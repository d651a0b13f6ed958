#pragma once

// dot_codes.hpp in plain C++: the reference of every other version.

#include <algorithm>
#include <cstdint>

#include "squat/cpu/row_blocks.hpp"
#include "squat/quantize/codes.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// One plane of codes, for weights of which |weight| <= 127.
template <int Bits>
void dot_plane(const std::uint8_t *packed, Index lane_count, Index inner, Index rows,
               RowView<const std::int8_t> weights, const float *multipliers, float factor,
               RowView<float> accumulated) {
  constexpr unsigned mask = (1u << Bits) - 1;
  const Index blocks = (inner + block_inner<Bits> - 1) / block_inner<Bits>;
  for (Index lane = 0; lane < lane_count; lane += lanes, packed += blocks * block_bytes) {
    for (Index row = 0; row < rows; ++row) {
      std::int32_t sums[lanes] = {};
      for (Index i = 0; i < inner; i += 4) {
        const std::uint8_t *codes = packed + i / block_inner<Bits> * block_bytes;
        const int shift = static_cast<int>(i % block_inner<Bits> / 4) * Bits;
        const std::int8_t *weight = weights[row] + i;
        for (Index l = 0; l < lanes; ++l) {
          for (Index byte = 0; byte < 4; ++byte) {
            sums[l] += weight[byte] * static_cast<int>((codes[l * 4 + byte] >> shift) & mask);
          }
        }
      }
      for (Index l = 0; l < lanes; ++l) {
        accumulated[row][lane + l] += multipliers[row] * factor * static_cast<float>(sums[l]);
      }
    }
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
