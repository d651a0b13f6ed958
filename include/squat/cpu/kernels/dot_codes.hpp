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

#include <array>
#include <cstddef>
#include <cstdint>

#include "squat/coding/codes.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/cpu/kernels/dot_trellis.hpp"
#include "squat/cpu/kernels/lane_codes.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"

#if defined(SQUAT_CPU_AVX512_VNNI)
#include "squat/cpu/kernels/dot_codes_avx512.hpp"
#elif defined(SQUAT_CPU_AVX2)
#include "squat/cpu/kernels/dot_codes_avx2.hpp"
#elif defined(SQUAT_CPU_NEON)
#include "squat/cpu/kernels/dot_codes_neon.hpp"
#else
#include "squat/cpu/kernels/dot_codes_portable.hpp"
#endif

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// What the integer sums of each row are multiplied by, and what is added to them.
struct RowFactors {
  const float *multipliers;
  const float *offsets;  ///< or null
};

/// The sum above over `lane_count` lanes of one plane, or of both of 3-bit codes, its multipliers times
/// `factor`. |weight| <= most_weight().
template <int Bits, class Weight>
void dot_plane(const LaneCodes &codes, std::ptrdiff_t ahead, Index lane_count, Index inner, Index rows,
               RowView<const Weight> weights, const RowFactors &factors, float factor,
               const SumRows &accumulated) {
  for_row_blocks<most_dot_rows>(rows, [&]<int RowCount>(Index row) {
    float multipliers[RowCount], offsets[RowCount];
    for (int r = 0; r < RowCount; ++r) {
      multipliers[r] = factors.multipliers[row + r] * factor;
      offsets[r] = factors.offsets == nullptr ? 0.0f : factors.offsets[row + r];
    }
    for_lane_blocks<dot_blocks<RowCount>, false>(lane_count, [&]<int Blocks>(Index lane) {
      dot_lanes<Bits, RowCount, Blocks>(
          codes.from(lane), ahead, inner, RowView<const Weight>{weights[row], weights.stride},
          multipliers, offsets,
          {{accumulated.rows.data + lane, accumulated.rows.stride}, accumulated.count, row});
    });
  });
}

/// dot_plane() by the width of a plane. Those that are not named are not compiled.
template <class Weight>
class DotPlanes {
 public:
  template <int... Bits>
  constexpr void add() {
    ((planes_[index(Bits)] = &dot_plane<Bits, Weight>), ...);
  }

  constexpr auto operator[](int bits) const {
    SQUAT_ASSERT(planes_[index(bits)] != nullptr);
    return planes_[index(bits)];
  }

 private:
  using DotPlane = void (*)(const LaneCodes &, std::ptrdiff_t, Index, Index, Index,
                            RowView<const Weight>, const RowFactors &, float, const SumRows &);
  static constexpr std::size_t index(int bits) {
    return static_cast<std::size_t>(bits == 8 ? 4 : bits - 1);
  }

  std::array<DotPlane, 5> planes_{};
};

/// The kernels that pages of some widths ask for.
struct CodeKernels {
  DotPlanes<std::int8_t> signed_weights;
  DotPlanes<std::uint8_t> unsigned_weights;  ///< of values up to 4 bits, see round_weights.hpp
  DotTrellis<std::int8_t> signed_trellis;
  DotTrellis<std::uint8_t> unsigned_trellis;

  /// Keys of every coding of that width: `subspace` mixes widths (bit_allocation.hpp).
  template <int Bits>
  constexpr void add_keys() {
    if constexpr (Bits < 16) {
      signed_weights.add<8, 4, 2, 1>();
      if constexpr (dots_three_bits) signed_weights.add<3>();
      signed_trellis.add<3, 2, 1>();
    }
  }

  /// Values up to 4 bits may have any width up to there (layer_allocation.hpp).
  template <int Bits>
  constexpr void add_values() {
    if constexpr (Bits == 8) signed_weights.add<8>();
    if constexpr (Bits <= 4) {
      unsigned_weights.add<4, 2, 1>();
      if constexpr (dots_three_bits) unsigned_weights.add<3>();
      unsigned_trellis.add<3, 2, 1>();
    }
  }
};

/// The kernels of pages whose keys and values have any of those widths.
template <int... Bits>
constexpr CodeKernels code_kernels() {
  CodeKernels kernels;
  (kernels.add_keys<Bits>(), ...);
  (kernels.add_values<Bits>(), ...);
  return kernels;
}

/// Packed codes of `rows` lanes times `inner`, of any width and kind.
struct PackedCodes {
  int bits;
  const std::uint8_t *data;
  Index rows;
  Index inner;
  std::ptrdiff_t ahead = 0;  ///< bytes to the codes that are read next, see prefetch.hpp
  Codes kind = Codes::scalar;
};

/// The sum above over the lanes [first, first + count), multiples of 16, for
/// codes of any width that `planes` has kernels for. weights: [rows, inner]; factors: of [rows];
/// accumulated: [rows, count], or half as many rows.
template <class Weight>
void accumulate_codes(const DotPlanes<Weight> &planes, const PackedCodes &codes, Index first,
                      Index count, Index rows, RowView<const Weight> weights, RowFactors factors,
                      const SumRows &accumulated) {
  const auto plane_of = [&](int bits, const std::uint8_t *data) {
    return LanePlane{data + plane_bytes(bits, first, codes.inner),
                     static_cast<Index>(plane_bytes(bits, lanes, codes.inner))};
  };
  if (dots_three_bits && codes.bits == 3) {
    const std::uint8_t *high = codes.data + plane_bytes(2, codes.rows, codes.inner);
    return planes[3]({plane_of(2, codes.data), plane_of(1, high)}, codes.ahead, count, codes.inner, rows,
                     weights, factors, 1, accumulated);
  }
  for_each_plane(codes.bits, codes.data, codes.rows, codes.inner,
                 [&]<int Bits>(const std::uint8_t *plane, int shift) {
                   planes[Bits]({plane_of(Bits, plane), {}}, codes.ahead, count, codes.inner, rows,
                                weights, factors, static_cast<float>(1 << shift), accumulated);
                   factors.offsets = nullptr;  // once for all planes
                 });
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
