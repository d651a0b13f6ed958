#pragma once

// Scores of query rows against packed and exact keys.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "squat/cpu/vector.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// accumulated[r][lane] += multiplier * sum_i weights[r][i] * code[lane][i], for
/// every lane of `lane_count` lanes and every row, over the codes of one plane.
/// weights: [rows, weight_stride]; accumulated: [rows, sum_stride]. Each block
/// of codes is read once for up to four rows.
template <int Bits>
void accumulate_plane(const std::uint8_t *packed, Index lane_count, Index inner, Index rows,
                      const float *weights, Index weight_stride, float multiplier, float *accumulated,
                      Index sum_stride) {
  const Index run_bytes = (inner + block_inner<Bits> - 1) / block_inner<Bits> * block_bytes;
  for (Index lane = 0; lane < lane_count; lane += lanes, packed += run_bytes) {
    for_row_blocks(rows, [&]<int Rows>(Index row) {
      FloatLanes sums[Rows] = {};
      for (Index first = 0; first < inner; first += block_inner<Bits>) {
        WordLanes words;
        load(packed + first / block_inner<Bits> * block_bytes, words);
        const int parts = static_cast<int>(std::min<Index>(8 / Bits, (inner - first) / 4));
        for (int part = 0; part < parts; ++part) {
          for (int byte = 0; byte < 4; ++byte) {
            FloatLanes codes;
            extract_codes<Bits>(words, byte * 8 + part * Bits, codes);
            const float *weight = weights + row * weight_stride + first + part * 4 + byte;
            for (int r = 0; r < Rows; ++r) sums[r] += weight[r * weight_stride] * codes;
          }
        }
      }
      for (int r = 0; r < Rows; ++r) {
        FloatLanes sum;
        float *to = accumulated + (row + r) * sum_stride + lane;
        load(to, sum);
        sum += multiplier * sums[r];
        std::memcpy(to, &sum, sizeof sum);
      }
    });
  }
}

/// Packed codes of `rows` lanes times `inner`, of any width.
struct PackedCodes {
  int bits;
  const std::uint8_t *data;
  Index rows;
  Index inner;
};

/// The same over the lanes [first, first + count) of codes of any width. Keys:
/// lanes are tokens, i runs over channels, weights are query * scale. Values:
/// lanes are channels, i runs over tokens, weights are probability * scale.
inline void accumulate_codes(const PackedCodes &codes, Index first, Index count, Index rows,
                             const float *weights, Index weight_stride, float *accumulated,
                             Index sum_stride) {
  for_each_plane(codes.bits, codes.data, codes.rows, codes.inner,
                 [&]<int Bits>(const std::uint8_t *plane, int shift) {
                   accumulate_plane<Bits>(plane + plane_bytes(Bits, first, codes.inner), count,
                                          codes.inner, rows, weights, weight_stride,
                                          static_cast<float>(1 << shift), accumulated, sum_stride);
                 });
}

/// scores[r][t] = queries[r] . keys[t]. queries: [rows, head_dim] floats; keys:
/// `tokens` rows, `key_stride` elements apart; scores: [rows, score_stride].
template <Element Scalar>
void score_rows(const float *queries, Index rows, Index head_dim, const Scalar *keys, Index key_stride,
                Index tokens, float *scores, Index score_stride) {
  for_row_blocks(rows, [&]<int Rows>(Index row) {
    for (Index token = 0; token < tokens; ++token) {
      const Scalar *key = keys + token * key_stride;
      FloatLanes sums[Rows] = {};
      for (Index i = 0; i < head_dim; i += lanes) {
        FloatLanes channels;
        load_row(key + i, channels);
        for (int r = 0; r < Rows; ++r) {
          FloatLanes query;
          load(queries + (row + r) * head_dim + i, query);
          sums[r] += query * channels;
        }
      }
      for (int r = 0; r < Rows; ++r) scores[(row + r) * score_stride + token] = sum_lanes(sums[r]);
    }
  });
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
