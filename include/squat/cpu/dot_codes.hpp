#pragma once

// Sums of integer weights times packed codes, the kernel under the scores of
// packed keys and the sums of packed values.
//
//   accumulated[r][lane] += offset[r] + multiplier[r] * sum_i weight[r][i] * code[lane][i]
//
// Keys: lanes are tokens, i runs over channels, a weight is query * scale.
// Values: lanes are channels, i runs over tokens, a weight is probability *
// scale. Weights are int8, or uint8 where none is negative and codes have up to
// 4 bits (see round_weights.hpp), so that the sum over i is integer arithmetic and
// exact: at most 127 * 255 * inner < 2^31 for any extent a page can have. A block of 64 bytes is loaded
// and shifted once for every row of a block of rows.
//
// Bytes read: plane_bytes(), once for every eight rows; weights: inner bytes a
// row and 64 lanes.

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "squat/cpu/row_blocks.hpp"
#include "squat/instruction_set.hpp"
#include "squat/quantize/codes.hpp"

#if defined(SQUAT_CPU_AVX512_VNNI)
#include "squat/cpu/dot_codes_avx512.hpp"
#elif defined(SQUAT_CPU_AVX2)
#include "squat/cpu/dot_codes_avx2.hpp"
#elif defined(SQUAT_CPU_NEON)
#include "squat/cpu/dot_codes_neon.hpp"
#else
#include "squat/cpu/dot_codes_portable.hpp"
#endif

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// What the integer sums of each row are multiplied by, and what is added to them.
struct RowFactors {
  const float *multipliers;
  const float *offsets;  ///< or null
};

/// The sum above over `lane_count` lanes of one plane, its multipliers times `factor`.
/// |weight| <= most_weight().
template <int Bits, class Weight>
void dot_plane(const std::uint8_t *packed, std::ptrdiff_t ahead, Index lane_count, Index inner,
               Index rows, RowView<const Weight> weights, const RowFactors &factors, float factor,
               const SumRows &accumulated) {
  const Index run_bytes = static_cast<Index>(plane_bytes(Bits, lanes, inner));
  for_row_blocks<most_dot_rows>(rows, [&]<int RowCount>(Index row) {
    float multipliers[RowCount], offsets[RowCount];
    for (int r = 0; r < RowCount; ++r) {
      multipliers[r] = factors.multipliers[row + r] * factor;
      offsets[r] = factors.offsets == nullptr ? 0.0f : factors.offsets[row + r];
    }
    for_lane_blocks<dot_blocks<RowCount>>(lane_count, [&]<int Blocks>(Index lane) {
      dot_lanes<Bits, RowCount, Blocks>(
          packed + lane / lanes * run_bytes, run_bytes, ahead, inner,
          RowView<const Weight>{weights[row], weights.stride}, multipliers, offsets,
          {{accumulated.rows.data + lane, accumulated.rows.stride}, accumulated.count, row});
    });
  });
}

/// Packed codes of `rows` lanes times `inner`, of any width.
struct PackedCodes {
  int bits;
  const std::uint8_t *data;
  Index rows;
  Index inner;
  std::ptrdiff_t ahead = 0;  ///< bytes to the codes that are read next, see prefetch.hpp
};

/// The sum above over the lanes [first, first + count), multiples of 16, for
/// codes of any width. weights: [rows, inner]; factors: of [rows]; accumulated:
/// [rows, count], or half as many rows.
template <class Weight>
void accumulate_codes(const PackedCodes &codes, Index first, Index count, Index rows,
                      RowView<const Weight> weights, RowFactors factors, const SumRows &accumulated) {
  for_each_plane(codes.bits, codes.data, codes.rows, codes.inner,
                 [&]<int Bits>(const std::uint8_t *plane, int shift) {
                   if constexpr (Bits < 8 || std::is_signed_v<Weight>) {
                     dot_plane<Bits>(plane + plane_bytes(Bits, first, codes.inner), codes.ahead, count,
                                     codes.inner, rows, weights, factors, static_cast<float>(1 << shift),
                                     accumulated);
                     factors.offsets = nullptr;  // once for all planes
                   } else {
                     SQUAT_ASSERT(false);  // see most_unsigned_weight
                   }
                 });
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
