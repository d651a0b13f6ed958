#pragma once

// Attention of a block of query rows that share one KV head over runs of exact
// rows and packed pages.
//
// Row r of a block is query head r % heads of token r / heads. Runs of tokens
// come one after another; each updates the running softmax and two sums: of
// exact values, and of packed ones in the rotated frame they are coded in. A
// key's scale is folded into the query once a page, a value's into its
// probability (q: the query as the page's tile sees it, in the page's space):
//
//   score_t = sum_c (q_c scale_c) code_tc + sum_c q_c zero_c + q . R(t) mean
//   output  = sum_t (p_t scale_t) code_tc - offset sum_t p_t scale_t
//
// Few rows (decoding) read codes straight from the page. Many rows (a prompt)
// share one unpacked page in scratch memory and go through matrix products.

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>

#include "squat/attention/softmax_state.hpp"
#include "squat/cpu/page_layout.hpp"
#include "squat/cpu/score_keys.hpp"
#include "squat/cpu/sum_values.hpp"
#include "squat/cpu/tile_queries.hpp"
#include "squat/cpu/unpack_page.hpp"
#include "squat/cpu/workspace.hpp"
#include "squat/quantize/hadamard.hpp"
#include "squat/tensor.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

template <class T, int KeyBits, int ValueBits>
class HeadAttention {
 public:
  using Layout = PageLayout<KeyBits, ValueBits>;

  /// Rows up to which codes are read straight from the page.
  static constexpr Index few_rows = TileQueries::few_rows;
  /// Exact tokens taken at a time.
  static constexpr Index run_tokens = 128;

  HeadAttention(const Layout &layout, const KeyFrame &coding, Index head, Index rows, Scratch scratch)
      : layout_(layout),
        coding_(coding),
        head_(head),
        rows_(rows),
        stride_(score_stride(layout)),
        queries_(scratch.take<float>(rows * layout.head_dim)),
        tile_(coding, queries_, rows, layout.head_dim, scratch) {
    const Index d = layout.head_dim;
    exact_sum_ = scratch.take<float>(rows * d);
    packed_sum_ = scratch.take<float>(rows * d);
    scores_ = scratch.take<float>(rows * stride_);
    limits_ = scratch.take<Index>(rows);
    states_ = scratch.take<SoftmaxState>(rows);
    folded_ = scratch.take<float>(rows * std::max(d, stride_));
    if (rows > few_rows) {
      keys_ = scratch.take<float>(stride_ * d);
      values_ = scratch.take<float>(stride_ * d);
    }
  }

  static std::size_t scratch_bytes(const Layout &layout, Index rows) {
    const Index d = layout.head_dim, stride = score_stride(layout);
    return TileQueries::scratch_bytes(rows, d) + 3 * Scratch::bytes<float>(rows * d) +
           Scratch::bytes<float>(rows * stride) + Scratch::bytes<Index>(rows) +
           Scratch::bytes<SoftmaxState>(rows) + Scratch::bytes<float>(rows * std::max(d, stride)) +
           (rows > few_rows ? 2 * Scratch::bytes<float>(stride * d) : 0);
  }

  /// Takes in the queries of `tokens` tokens from row `first` of q on, the
  /// first of which has `position` tokens before it.
  template <Element S>
  void begin(TensorView<const S> q, Index first, Index tokens, Index heads, Index position,
             float scale) {
    const Index d = layout_.head_dim;
    for (Index row = 0; row < tokens * heads; ++row) {
      copy_row(q.row(first + row / heads, head_ * heads + row % heads), d, queries_ + row * d);
      limits_[row] = position + row / heads + 1;
      states_[row] = {};
    }
    std::transform(queries_, queries_ + rows_ * d, queries_, [&](float x) { return x * scale; });
    tile_.reset();
    std::fill_n(exact_sum_, rows_ * d, 0.0f);
    std::fill_n(packed_sum_, rows_ * d, 0.0f);
  }

  /// Attends to `tokens` exact rows, the first of which has `position` tokens
  /// before it.
  template <Element S>
  void exact(const S *keys, Index key_stride, const S *values, Index value_stride, Index position,
             Index tokens) {
    tokens = std::min(tokens, limits_[rows_ - 1] - position);
    for (Index first = 0; first < tokens; first += run_tokens) {
      const Index count = std::min(run_tokens, tokens - first);
      score_exact(keys + first * key_stride, key_stride, count, queries_);
      softmax(position + first, 0, count);
      sum_exact(values + first * value_stride, value_stride, count);
    }
  }

  /// Attends to the tokens of a page, the first of which has `position` tokens
  /// before it.
  void page(const PageView &page, Index position) {
    const Index tokens = std::min(page.tokens, limits_[rows_ - 1] - position);
    if (tokens <= 0) return;
    tile_.enter(page.base);
    if constexpr (KeyBits == 16) {
      const auto *keys = layout_.template keys<Exact16<T>>(page.data, head_);
      score_exact(keys, layout_.head_dim, page.first + tokens, tile_.in(KeySpace::channels));
    } else {
      score_packed(page);
    }
    softmax(position, page.first, tokens);
    if constexpr (ValueBits == 16) {
      sum_exact(layout_.template values<Exact16<T>>(page.data, head_), layout_.head_dim,
                page.first + tokens);
    } else {
      sum_packed(page.data, page.first + tokens);
    }
  }

  /// Writes the outputs of what begin() took in.
  template <Element S>
  void finish(TensorView<S> out, Index first, Index heads) {
    const Index d = layout_.head_dim;
    for (Index row = 0; row < rows_; ++row) {
      float *packed = packed_sum_ + row * d;
      if (ValueBits < 16 && layout_.value_coding == ValueCoding::symmetric) rotate_hadamard(packed, d);
      const float *exact = exact_sum_ + row * d;
      const float inverse = 1.0f / states_[row].sum;
      S *output = out.row(first + row / heads, head_ * heads + row % heads);
      for (Index i = 0; i < d; ++i) output[i] = static_cast<S>((exact[i] + packed[i]) * inverse);
    }
  }

 private:
  using Matrix = Eigen::Map<RowMatrix>;
  using ScoreMatrix = Eigen::Map<RowMatrix, 0, Eigen::OuterStride<>>;

  static Index score_stride(const Layout &layout) { return std::max(run_tokens, layout.group); }

  bool many() const { return rows_ > few_rows; }
  Eigen::Map<const RowMatrix> matrix(const float *queries) const {
    return {queries, rows_, layout_.head_dim};
  }
  ScoreMatrix scores(Index count) const {
    return {scores_, rows_, count, Eigen::OuterStride<>(stride_)};
  }

  template <Element S>
  void score_exact(const S *keys, Index key_stride, Index count, const float *queries) {
    if (!many()) {
      score_rows(queries, rows_, layout_.head_dim, keys, key_stride, count, scores_, stride_);
      return;
    }
    const Index d = layout_.head_dim;
    for (Index token = 0; token < count; ++token)
      copy_row(keys + token * key_stride, d, keys_ + token * d);
    scores(count).noalias() = matrix(queries) * Matrix(keys_, count, d).transpose();
  }

  void score_packed(const PageView &page) {
    const Index d = layout_.head_dim, group = layout_.group;
    const KeySpace space = layout_.key_space(page.data, head_);
    const BitAllocation &allocation = coding_.quantizer->allocation(space);
    const float *queries = tile_.in(space);
    if (many()) {
      unpack_keys(layout_, allocation, page.data, head_, keys_);
      scores(group).noalias() = matrix(queries) * Matrix(keys_, d, group);
    } else {
      fold_key_scales(page.data, queries);
      const auto *packed = layout_.template keys<std::uint8_t>(page.data, head_);
      for (const CodeRun &run : allocation.runs()) {
        accumulate_codes({run.bits, packed, group, run.channels}, 0, group, rows_, folded_ + run.first,
                         d, scores_, stride_);
        packed += code_bytes(run.bits, group, run.channels);
      }
    }
    tile_.add_mean_scores(page.row, group, scores_, stride_);
  }

  /// folded[r][c] = q_rc scale_c, and scores[r][t] = sum_c q_rc zero_c.
  void fold_key_scales(std::byte *page, const float *queries) {
    const Index d = layout_.head_dim;
    const half *zeros = layout_.key_zeros(page, head_), *scales = layout_.key_scales(page, head_);
    for (Index row = 0; row < rows_; ++row) {
      FloatLanes zero_score = {};
      for (Index i = 0; i < d; i += lanes) {
        FloatLanes query, scale, zero;
        load(queries + row * d + i, query);
        load_row(scales + i, scale);
        load_row(zeros + i, zero);
        zero_score += query * zero;
        query *= scale;
        std::memcpy(folded_ + row * d + i, &query, sizeof query);
      }
      // The first scale's sign is the page's key space.
      folded_[row * d] = queries[row * d] * static_cast<float>(layout_.key_scale(page, head_, 0).scale);
      std::fill_n(scores_ + row * stride_, layout_.group, sum_lanes(zero_score));
    }
  }

  /// Turns the scores [first, first + count) of a run, the first of which has
  /// `position` tokens before it, into exp(score - maximum), 0 for what a row
  /// does not see, and rescales what was summed before.
  void softmax(Index position, Index first, Index count) {
    const Index d = layout_.head_dim;
    for (Index row = 0; row < rows_; ++row) {
      float *score = scores_ + row * stride_ + first;
      const Index visible = std::clamp(limits_[row] - position, Index{0}, count);
      const float factor = states_[row].update(score, visible);
      std::fill(score - first, score, 0.0f);
      std::fill(score + visible, score + count, 0.0f);
      if (factor == 1.0f) continue;
      for (Index i = 0; i < d; ++i) {
        exact_sum_[row * d + i] *= factor;
        packed_sum_[row * d + i] *= factor;
      }
    }
  }

  template <Element S>
  void sum_exact(const S *values, Index value_stride, Index count) {
    const Index d = layout_.head_dim;
    if (!many()) {
      sum_rows(scores_, stride_, rows_, values, value_stride, count, exact_sum_, d, d);
      return;
    }
    for (Index token = 0; token < count; ++token) {
      copy_row(values + token * value_stride, d, values_ + token * d);
    }
    Matrix(exact_sum_, rows_, d).noalias() += scores(count) * Matrix(values_, count, d);
  }

  void sum_packed(std::byte *page, Index count) {
    const Index d = layout_.head_dim, group = layout_.group;
    if (many()) {
      unpack_values(layout_, page, head_, values_);
      Matrix(packed_sum_, rows_, d).noalias() += scores(count) * Matrix(values_, count, d);
      return;
    }
    const Index run = d / layout_.scales_of_a_value;
    for (Index i = 0; i < layout_.scales_of_a_value; ++i) {
      fold_value_scales(page, i, count, run);
      accumulate_codes({ValueBits, layout_.template values<std::uint8_t>(page, head_), d, group},
                       i * run, run, rows_, folded_, stride_, packed_sum_ + i * run, d);
    }
  }

  /// folded[r][t] = p_rt scale_t, 0 for the tokens that do not count, and the
  /// zeros' share of the output.
  void fold_value_scales(std::byte *page, Index i, Index count, Index run) {
    const Index d = layout_.head_dim, group = layout_.group;
    const half *scales = layout_.value_scales_row(page, head_, i);
    const half *zeros = layout_.value_zeros_row(page, head_, i);
    for (Index row = 0; row < rows_; ++row) {
      const float *probability = scores_ + row * stride_;
      float *folded = folded_ + row * stride_;
      float zero_sum = 0;
      for (Index token = 0; token < count; ++token) {
        folded[token] = probability[token] * static_cast<float>(scales[token]);
      }
      std::fill(folded + count, folded + group, 0.0f);
      if (layout_.value_coding == ValueCoding::symmetric) {
        zero_sum = -symmetric_offset(ValueBits) * Eigen::Map<Eigen::ArrayXf>(folded, count).sum();
      } else {
        for (Index token = 0; token < count; ++token) {
          zero_sum += probability[token] * static_cast<float>(zeros[token]);
        }
      }
      float *sum = packed_sum_ + row * d + i * run;
      for (Index channel = 0; channel < run; ++channel) sum[channel] += zero_sum;
    }
  }

  const Layout &layout_;
  KeyFrame coding_;
  Index head_;
  Index rows_;
  Index stride_;    // of the scores, in floats
  float *queries_;  // [rows, head_dim], times the attention scale
  TileQueries tile_;
  float *exact_sum_ = nullptr;      // [rows, head_dim]
  float *packed_sum_ = nullptr;     // [rows, head_dim]
  float *scores_ = nullptr;         // [rows, stride]
  float *folded_ = nullptr;         // queries times key scales, or probabilities times value scales
  float *keys_ = nullptr;           // [stride, head_dim] or [head_dim, group], for many rows
  float *values_ = nullptr;         // [stride, head_dim], for many rows
  Index *limits_ = nullptr;         // [rows], the first position a row does not see
  SoftmaxState *states_ = nullptr;  // [rows]
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
