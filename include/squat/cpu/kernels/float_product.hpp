#pragma once

// Products of float matrices whose extents are those of a block of query rows, a run of tokens and a
// head, for prompts.
//
// A tile of the result stays in registers while the inner index runs: each step loads a vector or two of
// a row of b, and meets it with an element of each row of a. Both products of attention are of that
// form, with keys [channel, token] and values [token, channel], so that neither operand is copied.

#include <cstring>

#include "squat/core/instruction_set.hpp"
#include "squat/cpu/kernels/float_vector.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"
#include "squat/cpu/stored_rows.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Rows of a tile: its sums fill half of the registers, or what multiply-adds at two a cycle wait for.
#if defined(SQUAT_CPU_AVX512) || defined(SQUAT_CPU_NEON)
inline constexpr int product_rows = 8;
#else
inline constexpr int product_rows = 4;
#endif

/// The floats behind each row of b that keep its rows apart in the caches' sets.
inline constexpr Index row_padding = 16;

template <bool Add, int RowCount, int Vectors>
void multiply_tile(RowView<const float> a, RowView<const float> b, Index inner, RowView<float> c) {
  FloatVector sums[RowCount][Vectors];
  SQUAT_UNROLL(16)
  for (int r = 0; r < RowCount; ++r) {
    SQUAT_UNROLL(16)
    for (int v = 0; v < Vectors; ++v)
      sums[r][v] = Add ? load_floats(c[r] + v * float_lanes) : broadcast(0);
  }
  for (Index k = 0; k < inner; ++k) {
    FloatVector row[Vectors];
    SQUAT_UNROLL(16)
    for (int v = 0; v < Vectors; ++v) row[v] = load_floats(b[k] + v * float_lanes);
    SQUAT_UNROLL(16)
    for (int r = 0; r < RowCount; ++r) {
      const FloatVector factor = broadcast(a[r][k]);
      SQUAT_UNROLL(16)
      for (int v = 0; v < Vectors; ++v) sums[r][v] = multiply_add(factor, row[v], sums[r][v]);
    }
  }
  SQUAT_UNROLL(16)
  for (int r = 0; r < RowCount; ++r) {
    SQUAT_UNROLL(16)
    for (int v = 0; v < Vectors; ++v) store_floats(c[r] + v * float_lanes, sums[r][v]);
  }
}

/// c[r][n] = sum_k a[r][k] b[k][n], or is more by that much. a: [rows, inner]; b: [inner, columns]; c:
/// [rows, columns]. Rows of b and c are read and written up to a multiple of float_lanes columns.
template <bool Add>
void multiply_rows(RowView<const float> a, Index rows, RowView<const float> b, Index inner,
                   Index columns, RowView<float> c) {
  const auto run = [&]<int Vectors>(Index column) {
    for_row_blocks<product_rows>(rows, [&]<int RowCount>(Index row) {
      multiply_tile<Add, RowCount, Vectors>({a[row], a.stride}, {b.data + column, b.stride}, inner,
                                            {c[row] + column, c.stride});
    });
  };
  Index column = 0;
  for (; column + float_lanes < columns; column += 2 * float_lanes) run.template operator()<2>(column);
  if (column < columns) run.template operator()<1>(column);
}

/// to[i][t] = rows[t][i], converted. rows: [count, channels], channels a multiple of 4; to: [channels,
/// count], whose rows are written up to a multiple of 4.
template <RowElement S>
void transpose_rows(RowView<const S> rows, Index count, Index channels, RowView<float> to) {
  typedef float Four __attribute__((vector_size(16)));
  for (Index token = 0; token < count; token += 4) {
    const S *row[4];
    for (Index t = 0; t < 4; ++t) row[t] = rows[token + t < count ? token + t : count - 1];
    for (Index first = 0; first < channels; first += float_lanes) {
      float block[4][float_lanes];
      SQUAT_UNROLL(4)
      for (int t = 0; t < 4; ++t) store_floats(block[t], load_floats(row[t] + first));
      SQUAT_UNROLL(4)
      for (int i = 0; i < float_lanes; i += 4) {
        Four x[4];
        SQUAT_UNROLL(4)
        for (int t = 0; t < 4; ++t) std::memcpy(&x[t], block[t] + i, sizeof x[t]);
        const Four low02 = __builtin_shufflevector(x[0], x[2], 0, 4, 1, 5),
                   low13 = __builtin_shufflevector(x[1], x[3], 0, 4, 1, 5),
                   high02 = __builtin_shufflevector(x[0], x[2], 2, 6, 3, 7),
                   high13 = __builtin_shufflevector(x[1], x[3], 2, 6, 3, 7);
        const Four columns[4] = {__builtin_shufflevector(low02, low13, 0, 4, 1, 5),
                                 __builtin_shufflevector(low02, low13, 2, 6, 3, 7),
                                 __builtin_shufflevector(high02, high13, 0, 4, 1, 5),
                                 __builtin_shufflevector(high02, high13, 2, 6, 3, 7)};
        SQUAT_UNROLL(4)
        for (int j = 0; j < 4; ++j)
          std::memcpy(to[first + i + j] + token, &columns[j], sizeof columns[j]);
      }
    }
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
