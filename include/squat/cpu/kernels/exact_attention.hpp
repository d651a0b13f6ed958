#pragma once

// Scores and sums of rows in float, half, bfloat16 or bytes: what attention over
// the sinks, the tail and 16-bit pages is made of, and the baseline that
// packed pages are measured against.
//
// Each key and value is read and converted once for up to four query rows. At
// head_dim 128 that is 8 multiply-adds of 16 lanes a row and token: with four
// rows the arithmetic of a token takes about as long as its 512 bytes take from
// memory.

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "squat/cpu/kernels/float_vector.hpp"
#include "squat/cpu/kernels/prefetch.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"
#include "squat/cpu/stored_rows.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Elements of a cache line.
template <class Scalar>
inline constexpr Index line = 64 / sizeof(Scalar);

/// Rows ahead of the one being read that are called into the first-level cache from
/// the second, where those that prefetch_ahead() asked for have gone meanwhile.
inline constexpr Index rows_near = 8;

/// scores[r][t] = queries[r] . keys[t]. queries: [rows, head_dim], head_dim a
/// multiple of 16; keys: `tokens` rows; ahead: see prefetch.hpp. Never inlined: in its caller
/// GCC 12 makes its loop a seventh slower.
template <RowElement Scalar>
[[gnu::noinline]] void score_rows(RowView<const float> queries, Index rows, Index head_dim,
                                  RowView<const Scalar> keys, Index tokens, RowView<float> scores,
                                  std::ptrdiff_t ahead = 0) {
  for_row_blocks(rows, [&]<int RowCount>(Index row) {
    // As many sums as the registers hold beside their operands.
    constexpr int together = float_lanes == 8 && RowCount == 4 ? 2 : 4;
    for (Index token = 0; token < tokens; token += together) {
      const int count = static_cast<int>(std::min<Index>(together, tokens - token));
      const Scalar *key[together];
      SQUAT_UNROLL(16)
      for (int t = 0; t < together; ++t) key[t] = keys[token + std::min(t, count - 1)];
      FloatVector sums[RowCount * together];
      SQUAT_UNROLL(16)
      for (auto &sum : sums) sum = broadcast(0);
      for (Index i = 0; i < head_dim; i += float_lanes) {
        // Before the loads: at a branch behind them, clang would take them apart.
        if (i % line<Scalar> == 0) {
          SQUAT_UNROLL(16)
          for (int t = 0; t < together; ++t) {
            prefetch_ahead(key[t] + i, ahead);
            prefetch_near(key[t] + i + rows_near * keys.stride);
          }
        }
        FloatVector channels[together];
        SQUAT_UNROLL(16)
        for (int t = 0; t < together; ++t) channels[t] = load_floats(key[t] + i);
        SQUAT_UNROLL(16)
        for (int r = 0; r < RowCount; ++r) {
          const FloatVector query = in_register(load_floats(queries[row + r] + i));
          SQUAT_UNROLL(16)
          for (int t = 0; t < together; ++t) {
            sums[r * together + t] = multiply_add(query, channels[t], sums[r * together + t]);
          }
        }
      }
      float products[RowCount * together];
      SQUAT_UNROLL(16)
      for (int i = 0; i < RowCount * together; i += 4) sum_each(sums + i, products + i);
      if (count == together) {
        SQUAT_UNROLL(16)
        for (int r = 0; r < RowCount; ++r) {
          std::memcpy(scores[row + r] + token, products + r * together, together * sizeof(float));
        }
      } else {
        for (int r = 0; r < RowCount; ++r) {
          std::copy_n(products + r * together, count, scores[row + r] + token);
        }
      }
    }
  });
}

/// outputs[r] += sum_t weights[r][t] * values[t] over `Vectors` vectors of
/// channels.
template <int RowCount, int Vectors, RowElement Scalar>
void sum_channels(RowView<const float> weights, RowView<const Scalar> values, Index tokens,
                  RowView<float> outputs, std::ptrdiff_t ahead) {
  FloatVector sums[RowCount][Vectors];
  SQUAT_UNROLL(16)
  for (int r = 0; r < RowCount; ++r) {
    SQUAT_UNROLL(16)
    for (int i = 0; i < Vectors; ++i) sums[r][i] = load_floats(outputs[r] + i * float_lanes);
  }
  for (Index token = 0; token < tokens; ++token) {
    FloatVector value[Vectors];
    SQUAT_UNROLL(16)
    for (int i = 0; i < Vectors; ++i) {
      value[i] = load_floats(values[token] + i * float_lanes);
      if (i * float_lanes % line<Scalar> == 0) {
        prefetch_ahead(values[token] + i * float_lanes, ahead);
        prefetch_near(values[token + rows_near] + i * float_lanes);
      }
    }
    SQUAT_UNROLL(16)
    for (int r = 0; r < RowCount; ++r) {
      const FloatVector weight = broadcast(weights[r][token]);
      SQUAT_UNROLL(16)
      for (int i = 0; i < Vectors; ++i) sums[r][i] = multiply_add(weight, value[i], sums[r][i]);
    }
  }
  SQUAT_UNROLL(16)
  for (int r = 0; r < RowCount; ++r) {
    SQUAT_UNROLL(16)
    for (int i = 0; i < Vectors; ++i) store_floats(outputs[r] + i * float_lanes, sums[r][i]);
  }
}

/// outputs[r] += sum_t weights[r][t] * values[t]. values: `tokens` rows of
/// `channels` elements, a multiple of 16. Never inlined, like score_rows().
template <RowElement Scalar>
[[gnu::noinline]] void sum_rows(RowView<const float> weights, Index rows, RowView<const Scalar> values,
                                Index tokens, Index channels, RowView<float> outputs,
                                std::ptrdiff_t ahead = 0) {
  // What registers hold sums for is a part of a row; so few tokens at a time
  // that the rest of theirs is still in the first-level cache.
  constexpr int vectors = float_lanes == 8 ? 2 : 4;
  constexpr Index together = 32;
  for (Index token = 0; token < tokens; token += together) {
    const Index count = std::min(together, tokens - token);
    for_row_blocks(rows, [&]<int RowCount>(Index row) {
      const auto run = [&]<int Vectors>(Index first) {
        sum_channels<RowCount, Vectors, Scalar>({weights[row] + token, weights.stride},
                                                {values[token] + first, values.stride}, count,
                                                {outputs[row] + first, outputs.stride}, ahead);
      };
      Index first = 0;
      for (; first + vectors * float_lanes <= channels; first += vectors * float_lanes) {
        run.template operator()<vectors>(first);
      }
      for (; first < channels; first += float_lanes) run.template operator()<1>(first);
    });
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
