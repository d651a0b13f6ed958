#pragma once

// Attention of a block of query rows that share one KV head over runs of exact
// rows and packed pages.
//
// Row r of a block is query head r % heads of token r / heads. Runs of tokens
// come one after another; each updates the running softmax and two sums: of
// values as they are, and of those that are kept rotated (coding/hadamard.hpp).
//
// Codes are read straight from the page, for few rows at a time. Many rows (a prompt)
// meet exact keys and values in matrix products, and so they do the codes of an unpacked
// page where integers are slower (unpacks_for_many()).

#include <algorithm>
#include <array>
#include <concepts>
#include <cstdint>
#include <span>

#include "squat/cache/call.hpp"
#include "squat/coding/hadamard.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cpu/attend_batch.hpp"
#include "squat/cpu/head_coding.hpp"
#include "squat/cpu/kernels/bend_scores.hpp"
#include "squat/cpu/kernels/exact_attention.hpp"
#include "squat/cpu/kernels/float_product.hpp"
#include "squat/cpu/kernels/float_vector.hpp"
#include "squat/cpu/kernels/prefetch.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"
#include "squat/cpu/kernels/score_keys.hpp"
#include "squat/cpu/kernels/softmax.hpp"
#include "squat/cpu/kernels/stored_row.hpp"
#include "squat/cpu/kernels/sum_values.hpp"
#include "squat/cpu/kernels/transform_queries.hpp"
#include "squat/cpu/kernels/unpack_page.hpp"
#include "squat/cpu/kernels/vector.hpp"
#include "squat/cpu/kernels/weighted_codes.hpp"
#include "squat/cpu/page_layout.hpp"
#include "squat/cpu/softmax_state.hpp"
#include "squat/cpu/stored_rows.hpp"
#include "squat/cpu/workspace.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

template <class T>
class HeadAttention {
 public:
  using Layout = PageLayout;

  /// Rows that meet codes at a time, and up to which exact rows are read once for four of them.
  static constexpr Index few_rows = cpu::few_rows;
  /// Exact tokens taken at a time.
  static constexpr Index run_tokens = 128;
  /// Packed pages that few rows take at a time: what one waits for, another fills. Wide
  /// codes take fewer, so that the codes asked for ahead leave them the first-level cache.
  /// Four rows take all, more rows fewer, so that their weights and scores stay at hand.
  static constexpr Index most_pages = 8;
  static Index pages_of(const Layout &layout, Index rows) {
    if (rows > few_rows || layout.key_bits == 16 || layout.value_bits == 16) return 1;
    const Index most = layout.key_bits + layout.value_bits <= 8 ? most_pages : most_pages / 2;
    return std::clamp<Index>(4 * most / rows, 1, most);
  }

  HeadAttention(const Layout &layout, const CodeKernels &kernels, const HeadCoding &coding, Index head,
                Index rows, Scratch scratch)
      : layout_(layout),
        coding_(coding),
        head_(head),
        rows_(rows),
        stride_(score_stride(layout, rows)),
        queries_(scratch.take<float>(rows * layout.head_dim)),
        tile_(coding, queries_, rows, layout.head_dim, pages_of(layout, rows), scratch) {
    const Index d = layout.head_dim;
    rotated_queries_ = scratch.take<float>(rows * d);
    exact_sum_ = scratch.take<float>(rows * d);
    packed_sum_ = scratch.take<float>(rows * d);
    mean_weights_ = scratch.take<float>(rows);
    scores_ = scratch.take<float>(rows * stride_);
    seen_ = scratch.take<TokenRange>(rows);
    places_ = scratch.take<Index>(rows);
    states_ = scratch.take<SoftmaxState>(rows);
    own_keys_ = scratch.take<T>(run_tokens * d);
    own_values_ = scratch.take<T>(run_tokens * d);
    path_row_ = scratch.take<float>(d);
    if (rows > few_rows) {
      keys_ = {scratch.take<float>((stride_ + row_padding) * d), stride_ + row_padding};
      values_ = {scratch.take<float>(stride_ * (d + row_padding)), d + row_padding};
    }
    for (Index i = 0; i < pages_of(layout, rows); ++i) {
      weights_[static_cast<std::size_t>(i)] =
          CodeWeights(kernels, std::min(rows, few_rows), std::max(d, layout.group), scratch);
    }
  }

  static std::size_t scratch_bytes(const Layout &layout, Index rows) {
    const Index d = layout.head_dim, stride = score_stride(layout, rows);
    return TileQueries<float>::scratch_bytes(rows, d, pages_of(layout, rows)) +
           4 * Scratch::bytes<float>(rows * d) + Scratch::bytes<float>(rows * stride) +
           Scratch::bytes<float>(rows) + Scratch::bytes<TokenRange>(rows) + Scratch::bytes<Index>(rows) +
           Scratch::bytes<SoftmaxState>(rows) + 2 * Scratch::bytes<T>(run_tokens * d) +
           Scratch::bytes<float>(d) +
           (rows > few_rows ? Scratch::bytes<float>((stride + row_padding) * d) +
                                  Scratch::bytes<float>(stride * (d + row_padding))
                            : 0) +
           static_cast<std::size_t>(pages_of(layout, rows)) *
               CodeWeights::scratch_bytes(std::min(rows, few_rows), std::max(d, layout.group));
  }

  /// Takes in the queries of `tokens` tokens of a call from `first` on. rule: what becomes of scores,
  /// its slopes those of this KV head.
  template <Element S, class Call>
  void begin(TensorView<const S> q, const Call &call, Index first, Index tokens, Index heads,
             float scale, const ScoreRule &rule) {
    const Index d = layout_.head_dim;
    rule_ = rule;
    heads_ = heads;
    for (Index row = 0; row < tokens * heads; ++row) {
      const Index token = first + row / heads, end = call.seen(token), place = call.place(token);
      convert_row(q.row(call.first_row + token, head_ * heads + row % heads), d, queries_ + row * d);
      const Index begin = rule.window > 0 ? std::clamp<Index>(place + 1 - rule.window, 0, end) : 0;
      seen_[row] = {begin, end};
      places_[row] = place;
      states_[row] = {};
      if (row == 0) all_see_ = some_see_ = seen_[0];
      all_see_ = {std::max(all_see_.first, begin), std::min(all_see_.last, end)};
      some_see_ = {std::min(some_see_.first, begin), std::max(some_see_.last, end)};
    }
    std::transform(queries_, queries_ + rows_ * d, queries_, [&](float x) { return x * scale; });
    tile_.reset();
    rotated_ = sums_rotated_ = false;
    std::fill_n(exact_sum_, rows_ * d, 0.0f);
    std::fill_n(packed_sum_, rows_ * d, 0.0f);
    std::fill_n(mean_weights_, rows_, 0.0f);
  }

  /// Attends to `tokens` rows that are not packed, the first of which has `position` tokens
  /// before it.
  template <RowElement S>
  void exact(const S *keys, Index key_stride, const S *values, Index value_stride, Index position,
             Index tokens) {
    constexpr bool bytes = std::same_as<S, std::int8_t>;
    tokens = std::min(tokens, some_see_.last - position);
    const Index hidden = std::max<Index>(some_see_.first - position, 0);
    if (bytes && tokens > hidden) {
      rotate_queries();
      sums_rotated_ = true;
    }
    for (Index first = hidden; first < tokens; first += run_tokens) {
      const Index count = std::min(run_tokens, tokens - first);
      const S *key = keys + first * key_stride, *value = values + first * value_stride;
      score_exact<S>({key, key_stride}, count, {bytes ? rotated_queries_ : queries_, layout_.head_dim},
                     bytes_ahead(key, value));
      if constexpr (bytes) scale_scores({key, key_stride}, count);
      softmax(position + first, 0, count, count);
      if constexpr (bytes) scale_scores({value, value_stride}, count);
      sum_exact<S>({value, value_stride}, count, 0, bytes ? packed_sum_ : exact_sum_);
    }
  }

  /// The same for rows of a sequence.
  template <RowElement S>
  void exact(const StoredRows<S> &rows, Index position) {
    exact(rows.key(head_, 0), rows.row_elements, rows.value(head_, 0), rows.row_elements, position,
          rows.tokens);
  }

  /// The same for rows of a call, which count as the cache will keep them: rounded to T.
  template <Element S>
  void own(const S *keys, Index key_stride, const S *values, Index value_stride, Index position,
           Index tokens) {
    if constexpr (std::is_same_v<S, T>) {
      exact(keys, key_stride, values, value_stride, position, tokens);
    } else {
      const Index d = layout_.head_dim;
      tokens = std::min(tokens, some_see_.last - position);
      for (Index first = std::max<Index>(some_see_.first - position, 0); first < tokens;
           first += run_tokens) {
        const Index count = std::min(run_tokens, tokens - first);
        for (Index token = 0; token < count; ++token) {
          convert_row(keys + (first + token) * key_stride, d, own_keys_ + token * d);
          convert_row(values + (first + token) * value_stride, d, own_values_ + token * d);
        }
        exact<T>(own_keys_, d, own_values_, d, position + first, count);
      }
    }
  }

  /// Attends to the paths of a draft's tokens, which begin() took in: k, v are its call's rows, which
  /// count as the cache will keep them.
  template <Element S, class Call>
  void paths(TensorView<const S> k, TensorView<const S> v, const Call &call, Index first) {
    std::array<Index, run_tokens> path;
    for (Index row = 0; row < rows_; row += heads_) {
      Index token = first + row / heads_, place = places_[row];
      const Index depth = place + 1 - call.past;
      for (Index left = rule_.window > 0 ? std::min(depth, rule_.window) : depth; left > 0;) {
        const Index count = std::min(left, run_tokens);
        for (Index i = count; i-- > 0; token = call.draft[static_cast<std::size_t>(token)].parent)
          path[static_cast<std::size_t>(i)] = token;
        left -= count;
        place -= count;
        attend_path(k, v, call.first_row, std::span(path).first(static_cast<std::size_t>(count)), row,
                    place + 1);
      }
    }
  }

  /// How many of those pages can
  /// be taken at a time: whole ones that all rows see, or one of any other kind. Of
  /// several tiles, the last ends with them if it can, so that none is entered twice.
  Index together(std::span<const PageView> pages) const {
    if (many()) return 1;
    Index count = 0;
    const auto most = static_cast<std::size_t>(pages_of(layout_, rows_));
    for (const PageView &page : pages.first(std::min(pages.size(), most))) {
      if (page.tokens < layout_.group || page.before + layout_.group > all_see_.last ||
          page.before < all_see_.first)
        break;
      ++count;
    }
    if (count == 0 || count == static_cast<Index>(pages.size())) return std::max<Index>(count, 1);
    const Index whole = count - pages[static_cast<std::size_t>(count)].tile_page;
    return whole > 0 ? whole : count;
  }

  /// Whether a row sees any tokens of a page.
  bool sees(const PageView &page) const {
    return page.before < some_see_.last && page.before + page.tokens > some_see_.first;
  }

  /// Attends to the tokens of pages that can be taken together, which rows see. next: the pages whose
  /// turn comes next.
  void pages(std::span<const PageView> pages, std::span<const PageView> next) {
    const PageView &first = pages.front();
    const Index position = first.before;
    const auto count = static_cast<Index>(pages.size());
    const Index tokens =
        std::min(count == 1 ? first.tokens : count * layout_.group, some_see_.last - position);
    const auto for_each_page = [&](auto run) {
      for (Index i = 0; i < count; ++i) {
        const auto at = static_cast<std::size_t>(i);
        run(i, pages[at], bytes_ahead(pages[at].data, at < next.size() ? next[at].data : nullptr));
      }
    };
    tile_.enter(pages);
    if (layout_.key_bits == 16) {
      for_each_page([&](Index, const PageView &page, std::ptrdiff_t ahead) {
        const auto *keys = codes(page).template key_codes<Exact16<T>>();
        score_exact<Exact16<T>>({keys, layout_.head_dim}, first.first + tokens,
                                tile_.in(KeySpace::channels, page), ahead);
      });
    } else if (many() && unpacks_for_many(layout_.key_bits)) {
      score_unpacked(first);
    } else {
      score_packed(for_each_page);
    }
    softmax(position, first.first, tokens, count * layout_.group);
    if (layout_.value_bits == 16) {
      sum_exact<Exact16<T>>(
          {codes(first).template value_codes<Exact16<T>>(), layout_.head_dim}, first.first + tokens,
          bytes_ahead(first.data, next.empty() ? nullptr : next.front().data), exact_sum_);
    } else if (many() && unpacks_for_many(layout_.value_bits)) {
      sum_unpacked(first);
    } else {
      sum_packed(for_each_page);
    }
  }

  /// The outputs of what begin() took in, times their states' sums: [rows,
  /// head_dim].
  RowView<const float> sums() {
    const Index d = layout_.head_dim;
    for (Index row = 0; row < rows_; ++row) {
      float *packed = packed_sum_ + row * d;
      if (mean_weights_[row] > 0) {
        for (Index i = 0; i < d; ++i) packed[i] += mean_weights_[row] * coding_.value_mean[i];
      }
      if (sums_rotated_) rotate_hadamard_back(packed, d);
      for (Index i = 0; i < d; ++i) packed[i] += exact_sum_[row * d + i];
    }
    return {packed_sum_, d};
  }
  const SoftmaxState *states() const { return states_; }

 private:
  static Index score_stride(const Layout &layout, Index rows) {
    return std::max(run_tokens, pages_of(layout, rows) * layout.group);
  }

  bool many() const { return rows_ > few_rows; }

  /// Whether many rows meet codes of that width faster as floats: where integers have no products of
  /// four bytes, or AVX2's of 8-bit codes, which take two terms.
  static constexpr bool unpacks_for_many([[maybe_unused]] int bits) {
#if defined(SQUAT_CPU_AVX512_VNNI) || (defined(SQUAT_CPU_NEON) && defined(__ARM_FEATURE_DOTPROD))
    return false;
#elif defined(SQUAT_CPU_AVX2)
    return bits == 8;
#else
    return true;
#endif
  }

  /// Calls run(row) for the first of few rows at a time, for which there are weights.
  template <class Run>
  void for_few_rows(Run &&run) {
    for (Index row = 0; row < rows_; row += few_rows) {
      for (CodeWeights &weights : weights_) weights.row_count = std::min(few_rows, rows_ - row);
      run(row);
    }
  }

  RowView<float> scores() const { return {scores_, stride_}; }
  RowView<const float> probabilities() const { return {scores_, stride_}; }

  /// The queries as rows of bytes meet them, worked out once.
  void rotate_queries() {
    if (rotated_) return;
    rotated_ = true;
    const Index d = layout_.head_dim;
    std::copy_n(queries_, rows_ * d, rotated_queries_);
    for (Index row = 0; row < rows_; ++row) rotate_hadamard(rotated_queries_ + row * d, d);
  }

  /// Multiplies scores, or what became of them, by the steps of the rows they are of.
  void scale_scores(RowView<const std::int8_t> stored, Index count) {
    std::array<float, run_tokens> steps;
    for (Index token = 0; token < count; ++token)
      steps[static_cast<std::size_t>(token)] = row_step(stored[token], layout_.head_dim);
    for (Index row = 0; row < rows_; ++row) {
      float *scores = scores_ + row * stride_;
      for (Index token = 0; token < count; ++token)
        scores[token] *= steps[static_cast<std::size_t>(token)];
    }
  }

  template <RowElement S>
  void score_exact(RowView<const S> keys, Index count, RowView<const float> queries,
                   std::ptrdiff_t ahead) {
    const Index d = layout_.head_dim;
    if (!many()) return score_rows(queries, rows_, d, keys, count, scores(), ahead);
    transpose_rows(keys, count, d, keys_);
    multiply_rows<false>(queries, rows_, {keys_.data, keys_.stride}, d, count, scores());
  }

  /// The scores of page i of those that are taken together, from a row on.
  RowView<float> scores(Index i, Index row) const {
    return {scores_ + row * stride_ + i * layout_.group, stride_};
  }

  HeadCodes codes(const PageView &page) const {
    return coding_.codes(page.data, layout_.key_space(page.data, head_));
  }

  /// What the keys of packed pages score, mean keys included, for few rows at a time.
  template <class ForEachPage>
  void score_packed(const ForEachPage &for_each_page) {
    for_few_rows([&](Index row) {
      for_each_page([&](Index i, const PageView &page, std::ptrdiff_t ahead) {
        CodeWeights &weights = weights_[static_cast<std::size_t>(i)];
        tile_.score_mean(page, layout_.group, row, weights.row_count, scores(i, row));
        const HeadCodes of_page = codes(page);
        const RowView<const float> queries = tile_.in(of_page.space, page);
        weigh_keys(layout_, of_page, page.data, head_, {queries[row], queries.stride}, weights, ahead);
      });
      for_each_page([&](Index i, const PageView &page, std::ptrdiff_t ahead) {
        score_keys(layout_, codes(page), page.data, head_, weights_[static_cast<std::size_t>(i)],
                   scores(i, row), ahead);
      });
    });
  }

  /// The same with the page's keys as floats, for many rows.
  void score_unpacked(const PageView &page) {
    const Index d = layout_.head_dim, group = layout_.group;
    tile_.score_mean(page, group, 0, rows_, scores());
    const HeadCodes of_page = codes(page);
    unpack_keys(layout_, of_page, page.data, head_, keys_.data);
    multiply_rows<true>(tile_.in(of_page.space, page), rows_, {keys_.data, group}, d, group, scores());
  }

  /// Turns the scores [first, first + count) of a run, the first of which has
  /// `position` tokens before it, into exp(score - maximum), all others of [0, extent)
  /// and what a row does not see into 0, and rescales what was summed before.
  void softmax(Index position, Index first, Index count, Index extent) {
    const auto visible = [&](Index row) {
      const Index begin = std::clamp(seen_[row].first - position, Index{0}, count);
      return TokenRange{begin, std::clamp(seen_[row].last - position, begin, count)};
    };
    const auto take = [&]<int RowCount>(Index row) {
      const TokenRange tokens = visible(row);
      float factors[RowCount];
      exponentiate<RowCount>(states_ + row, {scores_ + row * stride_, stride_}, first + tokens.first,
                             tokens.last - tokens.first, extent, factors);
      for (int r = 0; r < RowCount; ++r) rescale(row + r, factors[r]);
    };
    if (rule_.bends()) bend(position, first, count);
    extent = (extent + float_lanes - 1) / float_lanes * float_lanes;
    Index row = 0;
    while (row < rows_) {
      // Rows of one token see the same.
      const bool four = row + 4 <= rows_ && visible(row) == visible(row + 3) &&
                        visible(row) == visible(row + 1) && visible(row) == visible(row + 2);
      if (four) {
        take.template operator()<4>(row);
      } else {
        take.template operator()<1>(row);
      }
      row += four ? 4 : 1;
    }
  }

  /// Attends, for the rows of one token from `row` on, to those of a call in `path`, the first of which
  /// has `position` tokens before it.
  template <Element S>
  void attend_path(TensorView<const S> k, TensorView<const S> v, Index first_row,
                   std::span<const Index> path, Index row, Index position) {
    const Index d = layout_.head_dim;
    const auto count = static_cast<Index>(path.size());
    const auto load = [&](TensorView<const S> from, Index i) {
      convert_row(from.row(first_row + path[static_cast<std::size_t>(i)], head_), d, path_row_);
      if constexpr (!std::is_same_v<S, T>) round_row<T>(path_row_, d);
    };
    for (Index i = 0; i < count; ++i) {
      load(k, i);
      for (Index h = row; h < row + heads_; ++h) {
        FloatVector sum = broadcast(0);
        for (Index c = 0; c < d; c += float_lanes)
          sum = multiply_add(load_floats(queries_ + h * d + c), load_floats(path_row_ + c), sum);
        scores_[h * stride_ + i] = sum_lanes(sum);
      }
    }
    for (Index h = row; h < row + heads_; ++h) {
      float *scores = scores_ + h * stride_;
      if (rule_.bends()) bend(h, position, scores, count);
      float factor = 1;
      const Index extent = (count + float_lanes - 1) / float_lanes * float_lanes;
      exponentiate<1>(states_ + h, {scores, stride_}, 0, count, extent, &factor);
      rescale(h, factor);
    }
    for (Index i = 0; i < count; ++i) {
      load(v, i);
      for (Index h = row; h < row + heads_; ++h) {
        const FloatVector weight = broadcast(scores_[h * stride_ + i]);
        float *sum = exact_sum_ + h * d;
        for (Index c = 0; c < d; c += float_lanes)
          store_floats(sum + c, multiply_add(weight, load_floats(path_row_ + c), load_floats(sum + c)));
      }
    }
  }

  /// Scores become what the rule makes of them.
  void bend(Index position, Index first, Index count) {
    for (Index row = 0; row < rows_; ++row) bend(row, position, scores_ + row * stride_ + first, count);
  }
  void bend(Index row, Index position, float *scores, Index count) {
    const float slope = rule_.slopes != nullptr ? rule_.slopes[row % heads_] : 0.0f;
    bend_scores(rule_, slope, places_[row] - position, scores, count);
  }

  void rescale(Index row, float factor) {
    if (factor == 1.0f) return;
    const Index d = layout_.head_dim;
    mean_weights_[row] *= factor;
    for (Index i = row * d; i < (row + 1) * d; ++i) {
      exact_sum_[i] *= factor;
      packed_sum_[i] *= factor;
    }
  }

  template <RowElement S>
  void sum_exact(RowView<const S> values, Index count, std::ptrdiff_t ahead, float *sums) {
    const Index d = layout_.head_dim;
    if (!many()) return sum_rows(probabilities(), rows_, values, count, d, {sums, d}, ahead);
    for (Index token = 0; token < count; ++token) convert_row(values[token], d, values_[token]);
    multiply_rows<true>(probabilities(), rows_, {values_.data, values_.stride}, count, d, {sums, d});
  }

  /// Where packed values are summed.
  float *sums_of_packed() {
    const bool rotated = layout_.value_coding == ValueCoding::symmetric;
    sums_rotated_ |= rotated;
    return rotated ? packed_sum_ : exact_sum_;
  }

  /// Adds the values of packed pages, for few rows at a time.
  template <class ForEachPage>
  void sum_packed(const ForEachPage &for_each_page) {
    const Index d = layout_.head_dim;
    float *sums = sums_of_packed();
    for_each_page([&](Index i, const PageView &page, std::ptrdiff_t) { sum_means(page, scores(i, 0)); });
    for_few_rows([&](Index row) {
      for (Index scale = 0; scale < layout_.scales_of_a_value; ++scale) {
        for_each_page([&](Index i, const PageView &page, std::ptrdiff_t ahead) {
          const RowView<float> of_page = scores(i, row);
          weigh_values(layout_, codes(page).value_bits, page.data, head_, scale,
                       {of_page.data, of_page.stride}, weights_[static_cast<std::size_t>(i)], ahead);
        });
        for_each_page([&](Index i, const PageView &page, std::ptrdiff_t ahead) {
          sum_values(layout_, codes(page), scale, weights_[static_cast<std::size_t>(i)],
                     {sums + row * d, d}, ahead);
        });
      }
    });
  }

  /// The same with the page's values as floats, for many rows.
  void sum_unpacked(const PageView &page) {
    const Index d = layout_.head_dim, group = layout_.group;
    unpack_values(layout_, codes(page), page.data, head_, coding_.value_mean, values_.data);
    multiply_rows<true>(probabilities(), rows_, {values_.data, d}, group, d, {sums_of_packed(), d});
  }

  /// Notes how much a page weighs whose values are coded about their mean.
  void sum_means(const PageView &page, RowView<float> weights) {
    if (!layout_.values_about_mean(page.data, head_)) return;
    for (Index row = 0; row < rows_; ++row) {
      FloatVector sum = broadcast(0);
      for (Index token = 0; token < layout_.group; token += float_lanes)
        sum = sum + load_floats(weights[row] + token);
      mean_weights_[row] += sum_lanes(sum);
    }
  }

  const Layout &layout_;
  HeadCoding coding_;
  ScoreRule rule_;
  Index head_;
  Index heads_ = 1;  // query heads of a KV head
  Index rows_;
  Index stride_;    // of the scores, in floats
  float *queries_;  // [rows, head_dim], times the attention scale
  TileQueries<float> tile_;
  std::array<CodeWeights, most_pages> weights_;  // of each page
  bool rotated_ = false;                         // rotated_queries_ are there
  bool sums_rotated_ = false;                    // packed_sum_ holds some
  float *rotated_queries_ = nullptr;             // [rows, head_dim]
  float *exact_sum_ = nullptr;                   // [rows, head_dim]
  float *packed_sum_ = nullptr;                  // [rows, head_dim], of rotated values
  float *mean_weights_ = nullptr;                // [rows], of values that are coded about their mean
  float *scores_ = nullptr;                      // [rows, stride]
  RowView<float> keys_{};                        // [head_dim, stride], for many rows
  RowView<float> values_{};                      // [stride, head_dim], for many rows
  TokenRange *seen_ = nullptr;                   // [rows], the tokens that a row sees
  TokenRange all_see_, some_see_;                // what is in all of these, and around them
  Index *places_ = nullptr;                      // [rows], where the rows' own tokens stand
  SoftmaxState *states_ = nullptr;               // [rows]
  T *own_keys_ = nullptr;                        // [run_tokens, head_dim], a call's rows as T
  T *own_values_ = nullptr;                      // likewise
  float *path_row_ = nullptr;                    // [head_dim], a key or a value of a draft
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
