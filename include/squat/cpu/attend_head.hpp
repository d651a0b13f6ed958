#pragma once

// Attention of a block of query rows that share one KV head over runs of exact
// rows and packed pages.
//
// Row r of a block is query head r % heads of token r / heads. Runs of tokens
// come one after another; each updates the running softmax and two sums: of
// exact values, and of packed ones in the rotated frame they are coded in. A
// key's scale is folded into the query once a page, a value's into its
// probability:
//
//   score_t = sum_c (q_c scale_c) code_tc + sum_c q_c zero_c
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
#include "squat/cpu/unpack_page.hpp"
#include "squat/cpu/workspace.hpp"
#include "squat/quantize/hadamard.hpp"
#include "squat/quantize/orthogonal_rounding.hpp"
#include "squat/tensor.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

template <class T, int KeyBits, int ValueBits>
class HeadAttention {
 public:
  using Layout = PageLayout<KeyBits, ValueBits>;

  /// Rows up to which codes are read straight from the page.
  static constexpr Index few_rows = 32;
  /// Exact tokens taken at a time.
  static constexpr Index run_tokens = 128;

  HeadAttention(const Layout &layout, Index head, Index rows, Scratch scratch)
      : layout_(layout), head_(head), rows_(rows), stride_(score_stride(layout)) {
    const Index d = layout.head_dim;
    queries_ = scratch.take<float>(rows * d);
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
    return 3 * Scratch::bytes<float>(rows * d) + Scratch::bytes<float>(rows * stride) +
           Scratch::bytes<Index>(rows) + Scratch::bytes<SoftmaxState>(rows) +
           Scratch::bytes<float>(rows * std::max(d, stride)) +
           (rows > few_rows ? 2 * Scratch::bytes<float>(stride * d) : 0);
  }

  /// Takes in the queries of `tokens` tokens from row `first` of q on, the
  /// first of which stands at `position`.
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
    std::fill_n(exact_sum_, rows_ * d, 0.0f);
    std::fill_n(packed_sum_, rows_ * d, 0.0f);
  }

  /// Attends to `tokens` exact rows, the first of which stands at `position`.
  template <Element S>
  void exact(const S *keys, Index key_stride, const S *values, Index value_stride, Index position,
             Index tokens) {
    tokens = std::min(tokens, limits_[rows_ - 1] - position);
    for (Index first = 0; first < tokens; first += run_tokens) {
      const Index count = std::min(run_tokens, tokens - first);
      score_exact(keys + first * key_stride, key_stride, count);
      softmax(position + first, count);
      sum_exact(values + first * value_stride, value_stride, count);
    }
  }

  /// Attends to the first `tokens` tokens of a page, the first of which stands
  /// at `position`.
  void page(std::byte *page, Index position, Index tokens) {
    tokens = std::min(tokens, limits_[rows_ - 1] - position);
    if (tokens <= 0) return;
    if constexpr (KeyBits == 16) {
      score_exact(layout_.template keys<Exact16<T>>(page, head_), layout_.head_dim, tokens);
    } else {
      score_packed(page);
    }
    softmax(position, tokens);
    if constexpr (ValueBits == 16) {
      sum_exact(layout_.template values<Exact16<T>>(page, head_), layout_.head_dim, tokens);
    } else {
      sum_packed(page, tokens);
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
  Matrix queries() const { return {queries_, rows_, layout_.head_dim}; }
  ScoreMatrix scores(Index count) const {
    return {scores_, rows_, count, Eigen::OuterStride<>(stride_)};
  }

  template <Element S>
  void score_exact(const S *keys, Index key_stride, Index count) {
    if (!many()) {
      score_rows(queries_, rows_, layout_.head_dim, keys, key_stride, count, scores_, stride_);
      return;
    }
    const Index d = layout_.head_dim;
    for (Index token = 0; token < count; ++token)
      copy_row(keys + token * key_stride, d, keys_ + token * d);
    scores(count).noalias() = queries() * Matrix(keys_, count, d).transpose();
  }

  void score_packed(std::byte *page) {
    const Index d = layout_.head_dim, group = layout_.group;
    if (many()) {
      unpack_keys(layout_, page, head_, keys_);
      scores(group).noalias() = queries() * Matrix(keys_, d, group);
      return;
    }
    const half *zeros = layout_.key_zeros(page, head_);
    const half *scales = layout_.key_scales(page, head_);
    for (Index row = 0; row < rows_; ++row) {
      FloatLanes zero_score = {};
      for (Index i = 0; i < d; i += lanes) {
        FloatLanes query, scale, zero;
        load(queries_ + row * d + i, query);
        load_row(scales + i, scale);
        load_row(zeros + i, zero);
        zero_score += query * zero;
        query *= scale;
        std::memcpy(folded_ + row * d + i, &query, sizeof query);
      }
      std::fill_n(scores_ + row * stride_, group, sum_lanes(zero_score));
    }
    accumulate_codes<KeyBits>(layout_.template keys<std::uint8_t>(page, head_), group, d, rows_, folded_,
                              d, scores_, stride_);
  }

  /// Turns the scores of `count` tokens into exp(score - maximum), 0 for tokens
  /// behind a row's limit, and rescales what was summed before.
  void softmax(Index position, Index count) {
    const Index d = layout_.head_dim;
    for (Index row = 0; row < rows_; ++row) {
      float *score = scores_ + row * stride_;
      const Index visible = std::clamp(limits_[row] - position, Index{0}, count);
      const float factor = states_[row].update(score, visible);
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
      sum_rows(scores_, stride_, rows_, values, value_stride, count, exact_sum_, d);
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
      accumulate_codes<ValueBits>(
          layout_.template values<std::uint8_t>(page, head_) + code_bytes<ValueBits>(i * run, group),
          run, group, rows_, folded_, stride_, packed_sum_ + i * run, d);
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
  Index head_;
  Index rows_;
  Index stride_;                    // of the scores, in floats
  float *queries_ = nullptr;        // [rows, head_dim], times the attention scale
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
