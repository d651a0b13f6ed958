#pragma once

// Scores of query rows against the keys of a packed page.
//
//   score_t = q . (zero + scale * code_t)
//           = sum_c (q_c scale_c) (code_tc - middle) + sum_c q_c (zero_c + scale_c middle)
//
// The scale folds into the query, and what is left of it as an integer (see
// round_weights.hpp) meets the codes, one run of a width at a time. That codes
// count from the middle of their range halves the error of rounding the query.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "squat/coding/bit_allocation.hpp"
#include "squat/cpu/head_coding.hpp"
#include "squat/cpu/kernels/float_vector.hpp"
#include "squat/cpu/kernels/prefetch.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"
#include "squat/cpu/kernels/weighted_codes.hpp"
#include "squat/cpu/page_layout.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Makes queries the weights of a page's codes. queries: [rows, head_dim], as the
/// codes see them.
template <class Layout>
void weigh_keys(const Layout &layout, const HeadCodes &codes, std::byte *page, Index head,
                RowView<const float> queries, CodeWeights &scratch, std::ptrdiff_t ahead = 0) {
  const Index d = layout.head_dim, rows = scratch.row_count;
  const half *zeros = layout.key_zeros(page, head), *scales = layout.key_scales(page, head);
  prefetch_ahead_all(zeros, d, ahead);
  prefetch_ahead_all(scales, d, ahead);
  const BitAllocation &allocation = *codes.allocation;
  const auto runs = allocation.runs();
  // Whether vectors end where runs do: then the largest weights of each are found on the way.
  const bool aligned = std::all_of(runs.begin(), runs.end(),
                                   [](const CodeRun &run) { return run.channels % float_lanes == 0; });
  for_row_blocks(rows, [&]<int RowCount>(Index row) {
    FloatVector zero_scores[4], most[4];
    SQUAT_UNROLL(16)
    for (auto &score : zero_scores) score = broadcast(0);
    const auto weigh = [&](Index first, Index last) {
      SQUAT_UNROLL(16)
      for (auto &magnitudes : most) magnitudes = broadcast(0);
      for (Index i = first; i < last; i += float_lanes) {
        const FloatVector zero = load_floats(zeros + i);
        // The signs of the first scales say what the page's codes stand for.
        const FloatVector scale = magnitude(load_floats(scales + i));
        SQUAT_UNROLL(16)
        for (int r = 0; r < RowCount; ++r) {
          const FloatVector query = load_floats(queries[row + r] + i), weight = query * scale;
          zero_scores[r] = multiply_add(query, zero, zero_scores[r]);
          store_floats(scratch.weights[row + r] + i, weight);
          most[r] = greater_of(most[r], magnitude(weight));
        }
      }
    };
    Index index = 0;
    for (const CodeRun &run : aligned ? runs : runs.first(0)) {
      float largest[4];
      weigh(run.first, run.first + run.channels);
      largest_of_each(most, largest);
      std::copy_n(largest, RowCount, scratch.largest[index++] + row);
    }
    weigh(aligned ? allocation.coded_channels() : 0, d);
    float constants[4];
    sum_each(zero_scores, constants);
    std::copy_n(constants, RowCount, scratch.constants + row);
  });
  const Codes kind = layout.key_codes(page, head);
  Index index = 0;
  for (const CodeRun &run : runs) {
    scratch.round<WeightSign::any>(index, run.first, run.bits, run.channels,
                                   aligned ? scratch.largest[index] : nullptr,
                                   codes_of_width(kind, run.bits));
    ++index;
  }
}

/// scores[r][t] += what the codes of all tokens of a page score, with the weights
/// that weigh_keys() left.
template <class Layout>
void score_keys(const Layout &layout, const HeadCodes &codes, std::byte *page, Index head,
                CodeWeights &scratch, RowView<float> scores, std::ptrdiff_t ahead = 0) {
  const auto *packed = codes.key_codes<std::uint8_t>();
  const Codes kind = layout.key_codes(page, head);
  Index index = 0;
  for (const CodeRun &run : codes.allocation->runs()) {
    scratch.accumulate<WeightSign::any>(
        index++, run.first,
        {run.bits, packed, layout.group, run.channels, ahead, codes_of_width(kind, run.bits)}, 0,
        layout.group, scores);
    packed += code_bytes(run.bits, layout.group, run.channels);
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
