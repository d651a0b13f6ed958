#pragma once

// How kernels take their rows and lanes: in blocks of a size known at compile
// time, so that what is loaded once serves all of a block from registers.

#include "squat/coding/codes.hpp"
#include "squat/core/instruction_set.hpp"

// Before a loop: turns to unroll. Without it GCC at -O2 keeps the registers of
// short loops of known length in memory.
#define SQUAT_PRAGMA(text) _Pragma(#text)
#if defined(__CUDACC__)
#define SQUAT_UNROLL(turns)  // nvcc knows neither
#elif defined(__clang__)
#define SQUAT_UNROLL(turns) SQUAT_PRAGMA(unroll turns)
#else
#define SQUAT_UNROLL(turns) SQUAT_PRAGMA(GCC unroll turns)
#endif

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Rows of a matrix in a caller's memory, `stride` elements apart.
template <class Scalar>
struct RowView {
  Scalar *data = nullptr;
  Index stride = 0;

  Scalar *operator[](Index row) const { return data + row * stride; }
};

/// Rows that sums go to, `count` of them: row r of what is summed to row r mod
/// count, r < 2 count, so that two terms of a weight meet in one sum.
struct SumRows {
  RowView<float> rows{};
  Index count = 0;
  Index first = 0;  ///< added to r

  float *operator[](Index row) const {
    const Index r = first + row;
    return rows[r < count ? r : r - count];
  }
};

/// Calls run.template operator()<Rows>(first) for blocks of 8 (if Most is 8),
/// 4, 3, 2 or 1 rows that cover `rows`.
template <int Most = 4, class Run>
inline void for_row_blocks(Index rows, Run &&run) {
  static_assert(Most == 8 || Most == 4);
  Index row = 0;
  if constexpr (Most == 8) {
    for (; row + 8 <= rows; row += 8) run.template operator()<8>(row);
  }
  for (; row + 4 <= rows; row += 4) run.template operator()<4>(row);
  switch (rows - row) {
    case 3:
      run.template operator()<3>(row);
      break;
    case 2:
      run.template operator()<2>(row);
      break;
    case 1:
      run.template operator()<1>(row);
      break;
    default:
      break;
  }
}

/// Calls run.template operator()<Blocks>(first) for runs of `Most` blocks of 16 lanes, at
/// most 4, and of what is left, that cover `count` lanes. Threes: whether three blocks that are
/// left go together, for which `run` is compiled once more.
template <int Most, bool Threes = true, class Run>
inline void for_lane_blocks(Index count, Run &&run) {
  static_assert(Most >= 1 && Most <= 4);
  Index lane = 0;
  for (; lane + Most * lanes <= count; lane += Most * lanes) run.template operator()<Most>(lane);
  if constexpr (Most > 3 && Threes) {
    if ((count - lane) / lanes == 3) return run.template operator()<3>(lane);
  }
  if constexpr (Most > 2) {
    if ((count - lane) / lanes >= 2) {
      run.template operator()<2>(lane);
      lane += 2 * lanes;
    }
  }
  if constexpr (Most > 1) {
    if (lane < count) run.template operator()<1>(lane);
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
