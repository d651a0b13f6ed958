#pragma once

// What a layer's codings learn and have learnt, a KV head each.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "squat/cache/call.hpp"
#include "squat/cache/options.hpp"
#include "squat/coding/attention_weights.hpp"
#include "squat/coding/bit_shares.hpp"
#include "squat/coding/coding.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/coding/evidence.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/moments.hpp"
#include "squat/coding/observation.hpp"
#include "squat/coding/query_statistics.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cpu/exact_store.hpp"
#include "squat/cpu/head_coding.hpp"
#include "squat/cpu/kernels/vector.hpp"
#include "squat/cpu/page_layout.hpp"
#include "squat/cpu/seen_tokens.hpp"
#include "squat/cpu/workspace.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// The statistics and codings of one layer, for all sequences or for one.
class LayerCoding {
 public:
  /// layout: of pages. tiles: of the keys, null for the frame they come in.
  LayerCoding(const Options &options, const PageLayout &layout, int layer, const TileTables *tiles)
      : layout_(layout),
        layer_(layer),
        tiles_(tiles),
        observation_{options.sinks, tiles ? tiles->frame.rows() : 0},
        group_(options.page_tokens),
        far_{options.sinks, options.residual},
        attention_scale_(options.attention_scale),
        weighs_(weighs_attention(options)),
        learns_(layout.key_bits < 16 && learns_from_prompt(*options.coding)),
        statistics_(static_cast<std::size_t>(options.kv_heads)),
        quantizers_(static_cast<std::size_t>(options.kv_heads),
                    KeyQuantizer(*options.coding, *options.fit, options.orthogonal, layout.key_bits,
                                 options.head_dim)),
        transforms_(static_cast<std::size_t>(options.kv_heads)),
        value_means_(static_cast<std::size_t>(options.kv_heads)),
        allocation_(layout.key_bits <= 4 ? *options.allocation : Allocation::head),
        code_bytes_(layout.code_bytes()) {}

  int layer() const { return layer_; }
  const TileTables *tiles() const { return tiles_; }
  const KeyQuantizer &quantizer(Index head) const { return quantizers_[static_cast<std::size_t>(head)]; }
  const QueryTransform &transform(Index head) const {
    return transforms_[static_cast<std::size_t>(head)];
  }

  /// The mean value, rotated as values are; null where none is known.
  const float *value_mean(Index head) const {
    const std::vector<float> &mean = value_means_[static_cast<std::size_t>(head)];
    return mean.empty() ? nullptr : mean.data();
  }

  /// Bytes of the codes of a page.
  std::size_t code_bytes() const { return code_bytes_; }

  /// How the heads share the bits of a page; null where each has as many. Otherwise all heads of a page
  /// are coded in one space.
  const BitShares *shares() const { return shares_ ? &*shares_ : nullptr; }
  /// Where the codes of a head begin in a page of that space.
  HeadPlace place(Index head, KeySpace space) const {
    return layout_.in_page(shares_ ? shares_->place(layout_, head, space)
                                   : layout_.place(head, {layout_.key_bits, layout_.value_bits}));
  }
  /// Whether a page whose heads' keys were coded in the basis is better coded so.
  bool suits(std::span<const CodedKeys> heads) const { return shares_->suit(quantizers_, heads); }

  const QueryStatistics *statistics(Index head) const {
    return statistics_[static_cast<std::size_t>(head)].get();
  }

  /// Whether observe() weighs what queries attend to, for who wants to know.
  static bool weighs_attention(const Options &options) {
    return *options.allocation != Allocation::head || options.keep_statistics;
  }

  /// Bytes of observe()'s scratch, for `heads` query heads to each KV head.
  static std::size_t scratch_bytes(const Options &options, Index heads) {
    const Index d = options.head_dim, rows = heads * run_tokens;
    const std::size_t of_rows = Scratch::bytes<float>(rows * d);
    if (!weighs_attention(options)) return of_rows;
    return 2 * of_rows + Scratch::bytes<Index>(rows) + Scratch::bytes<float>(rows) +
           Scratch::bytes<float>(2 * AttentionWeights::block_tokens * d) +
           Scratch::bytes<float>(AttentionWeights::elements(rows, d));
  }

  /// Makes the statistics that observe() adds to.
  void reserve_statistics(Index head_dim, const Prior *prior) {
    for (std::size_t head = 0; head < statistics_.size(); ++head) {
      make_statistics(static_cast<Index>(head), head_dim, prior);
    }
  }

  /// Of a KV head each.
  using Statistics = std::vector<std::unique_ptr<QueryStatistics>>;

  /// What a layer knew.
  struct Backup {
    Statistics statistics;
    bool learnt = false;
    bool observed = false;
  };

  Backup back_up() const {
    Backup backup{{}, learnt_, observed_};
    for (const auto &statistics : statistics_) {
      backup.statistics.push_back(statistics ? std::make_unique<QueryStatistics>(*statistics) : nullptr);
    }
    return backup;
  }

  void restore(Backup backup) {
    statistics_ = std::move(backup.statistics);
    observed_ = backup.observed;
    if (backup.learnt) return;
    learnt_ = learnt_nothing_ = false;
    share({}, layout_.code_bytes());
    value_weights_.clear();
    output_square_ = 0;
    for (KeyQuantizer &quantizer : quantizers_) quantizer.forget();
    for (QueryTransform &transform : transforms_) transform = QueryTransform();
    for (std::vector<float> &mean : value_means_) mean.clear();
  }

  /// Makes it what it was when it began.
  void forget() { restore({Statistics(statistics_.size())}); }

  /// Pages are coded without anything learnt from now on, see BackendOperations.
  void learn_nothing() {
    forget();
    learnt_ = learnt_nothing_ = true;
  }

  /// Tokens are about to be observed.
  void begin_to_observe() { observed_ = true; }

  /// Adds `count` tokens of a call, from its token `first` on, to the statistics of one KV head, `heads`
  /// query heads to each. Without queries (q.tokens = 0) keys alone are added. What queries attend to is
  /// weighed while there are no pages.
  template <class T, Element S>
  void observe(Index head, Index heads, const SequenceCall<ExactStore<T>> &call, TensorView<const S> q,
               TensorView<const S> k, TensorView<const S> v, Index first, Index count,
               const Prior *prior, Scratch scratch) {
    QueryStatistics &statistics = make_statistics(head, k.head_dim, prior);
    auto *rows = scratch.take<float>(heads * run_tokens * k.head_dim);
    for (Index run = first; run < first + count; run += run_tokens) {
      const ObservedTokens part{call.first_row + run, std::min(run_tokens, first + count - run),
                                call.past + run, call.position + run};
      if (q.tokens > 0) add_queries(statistics, head, heads, q, part, rows);
      if (q.tokens > 0 && weighs_ && call.pages.empty()) {
        call.exact->visit_tail([&]<class Kept>(const StoredRows<Kept> &tail) {
          const SeenTokens<T, Kept, S> seen{call.exact->sink_rows(), tail,
                                            k.slice(call.first_row, call.tokens),
                                            v.slice(call.first_row, call.tokens)};
          weigh_queries(statistics, head, heads, q, seen, part, rows, scratch);
        });
      }
      const ObservedTokens coded = observation_.keys(part);
      add_keys(statistics, head, k, coded, rows);
      if (knows_values()) add_values(statistics, head, v, coded, rows);
    }
  }

  /// What the queries that bases are learnt for count, in all heads alike.
  QueryWeighting weighting() const {
    const bool weighed = allocation_ != Allocation::head &&
                         std::all_of(statistics_.begin(), statistics_.end(), [](const auto &statistics) {
                           return statistics && has_attention_weights(*statistics);
                         });
    return weighed ? QueryWeighting::attention : QueryWeighting::equal;
  }

  /// Fixes the coding of one KV head from its statistics. Returns what speaks for it.
  template <class Real = double>
  Evidence learn(Index head, QueryWeighting weighting) {
    const auto i = static_cast<std::size_t>(head);
    if (!statistics_[i]) return {};
    const Evidence evidence = quantizers_[i].learn<Real>(*statistics_[i], frame(), weighting);
    quantizers_[i].round_basis<Real>();
    keep_matrix(i);
    if (knows_values()) value_means_[i] = rotated_value_mean(*statistics_[i]);
    return evidence;
  }

  /// All KV heads have learnt, with that weighting.
  void finish_learning(QueryWeighting weighting, bool keep_statistics) {
    const bool based = std::all_of(quantizers_.begin(), quantizers_.end(),
                                   [](const KeyQuantizer &quantizer) { return quantizer.basis(); });
    if (weighting == QueryWeighting::attention && based) {
      for (const auto &statistics : statistics_) {
        value_weights_.push_back(statistics->sums(&HeadSums::value_weight)[0]);
        output_square_ += statistics->sums(&HeadSums::output_square)[0];
      }
    }
    learnt_ = true;
    if (keep_statistics) return;
    for (auto &statistics : statistics_) statistics.reset();
  }

  bool learnt() const { return learnt_; }
  bool learnt_nothing() const { return learnt_nothing_; }

  /// All of it, see CodingRecord. Statistics are part of it once they hold tokens, while the layer is to
  /// learn from them.
  CodingRecord record() const {
    CodingRecord record;
    record.learnt = learnt_;
    record.code_bytes = code_bytes_;
    record.value_weights = value_weights_;
    record.output_square = output_square_;
    for (std::size_t i = 0; i < quantizers_.size(); ++i) {
      HeadRecord &head = record.heads.emplace_back(quantizers_[i].record());
      head.value_mean = value_means_[i];
      head.matrix = transforms_[i].rounded();
      head.value_bits = place(static_cast<Index>(i), KeySpace::basis).value_bits;
      if (allocation_ != Allocation::model) head.variance.clear();
      if (learns_ && observed_ && !learnt_) head.statistics = statistics_[i]->record();
    }
    if (shares_) shares_->write(record);
    return record;
  }

  /// Becomes what a record says, which was checked.
  void adopt(const CodingRecord &record) {
    learnt_ = record.learnt;
    observed_ = false;
    value_weights_ = record.value_weights;
    output_square_ = record.output_square;
    for (std::size_t i = 0; i < quantizers_.size(); ++i) {
      const HeadRecord &head = record.heads[i];
      quantizers_[i].adopt(head);
      value_means_[i] = head.value_mean;
      transforms_[i] = QueryTransform();
      keep_matrix(i);
      statistics_[i].reset();
      if (head.statistics.empty()) continue;
      observed_ = true;
      make_statistics(static_cast<Index>(i), layout_.head_dim, nullptr).adopt(head.statistics);
    }
    share(record.shared ? std::optional<BitShares>(std::in_place, layout_, record) : std::nullopt,
          record.code_bytes);
  }

  /// What its heads can be coded with, once learnt, where they are to share bits; nothing where each has
  /// as many.
  std::optional<ShareChoices> choices() const {
    if (value_weights_.empty()) return {};
    return ShareChoices(layout_, quantizers_, value_weights_, output_square_);
  }
  /// From now on they share them so, the codes of a page taking so many bytes; none: not any more.
  void share(std::optional<BitShares> shares, std::size_t code_bytes) {
    shares_ = std::move(shares);
    code_bytes_ = code_bytes;
    if (shares_) shares_->apply(quantizers_);
  }

  /// Lets go of what choices() takes.
  void drop_choices() {
    for (KeyQuantizer &quantizer : quantizers_) quantizer.drop_variance();
  }

  std::size_t statistics_bytes() const {
    std::size_t sum = 0;
    for (const auto &statistics : statistics_) {
      if (statistics) sum += statistics->bytes();
    }
    return sum;
  }

  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const KeyQuantizer &quantizer : quantizers_) sum += quantizer.bytes();
    for (const QueryTransform &transform : transforms_) sum += transform.bytes();
    for (const std::vector<float> &mean : value_means_) sum += mean.size() * sizeof(float);
    sum += value_weights_.size() * sizeof(double);
    if (shares_) sum += shares_->bytes();
    return sum;
  }

 private:
  /// Keeps the rounded matrix of a head's basis as its transform alone.
  void keep_matrix(std::size_t head) {
    transforms_[head] = QueryTransform(quantizers_[head]);
    quantizers_[head].drop_matrix();
    quantizers_[head].drop_rounded();
  }

  const TileFrame *frame() const { return tiles_ ? &tiles_->frame : nullptr; }

  static constexpr Index run_tokens = 64;  // observed at a time

  QueryStatistics &make_statistics(Index head, Index head_dim, const Prior *prior) {
    std::unique_ptr<QueryStatistics> &statistics = statistics_[static_cast<std::size_t>(head)];
    if (!statistics) {
      statistics = std::make_unique<QueryStatistics>(head_dim, group_, frame() ? frame()->rows() : 1);
      if (prior) statistics->merge(prior->head(layer_, head));
    }
    return *statistics;
  }

  /// Calls add(rows) for the queries [tokens, heads, head_dim] as each base sees them, of the tokens
  /// that are wanted: wanted(index) of those before them.
  template <Element S, class Wanted, class Add>
  void for_each_base(Index head, Index heads, TensorView<const S> q, const ObservedTokens &tokens,
                     float *rows, Wanted &&wanted, Add &&add) const {
    const Index d = q.head_dim;
    const auto add_from = [&](auto base_of) {
      float *row = rows;
      for (Index token = 0; token < tokens.count; ++token) {
        if (!wanted(tokens.index + token)) continue;
        for (Index shared = 0; shared < heads; ++shared, row += d) {
          convert_row(q.row(tokens.first + token, head * heads + shared), d, row);
        }
        const Index base = base_of(tokens.position + token);
        if (base == 0) continue;
        const Turn turn(frame()->table(), -base);
        for (Index shared = 1; shared <= heads; ++shared) turn.apply(row - shared * d);
      }
      add(HeadRows{rows, (row - rows) / d, d});
    };
    if (frame() == nullptr) return add_from([](Index) { return Index{0}; });
    for (std::size_t base = 0; base < Observation::query_bases; ++base) {
      add_from([&](Index position) { return observation_.bases(position)[base]; });
    }
  }

  template <Element S>
  void add_queries(QueryStatistics &statistics, Index head, Index heads, TensorView<const S> q,
                   const ObservedTokens &tokens, float *rows) const {
    for_each_base(
        head, heads, q, tokens, rows, [](Index) { return true; },
        [&](const HeadRows &queries) { squat::add_queries(statistics, queries); });
  }

  /// Weighs what errors in far keys and values do to queries. rows: as add_queries() takes them.
  template <class Seen, Element S>
  void weigh_queries(QueryStatistics &statistics, Index head, Index heads, TensorView<const S> q,
                     const Seen &seen, const ObservedTokens &tokens, float *rows,
                     Scratch scratch) const {
    const Index d = q.head_dim;
    auto *queries = scratch.take<float>(heads * run_tokens * d);
    auto *indices = scratch.take<Index>(heads * run_tokens);
    auto *factors = scratch.take<float>(heads * run_tokens);
    auto *block = scratch.take<float>(2 * AttentionWeights::block_tokens * d);
    Index count = 0;
    for (Index token = 0; token < tokens.count; ++token) {
      if (Observation::weighed_tokens(tokens.index + token) == 0) continue;
      for (Index shared = 0; shared < heads; ++shared, ++count) {
        indices[count] = tokens.index + token;
        convert_row(q.row(tokens.first + token, head * heads + shared), d, queries + count * d);
      }
    }
    if (count == 0) return;
    for (Index i = 0; i < count * d; ++i) queries[i] *= attention_scale_;
    AttentionWeights weights(queries, indices, count, d, far_,
                             scratch.take<float>(AttentionWeights::elements(count, d)));
    seen.for_each_block(head, indices[count - 1] + 1, AttentionWeights::block_tokens, block,
                        [&](const float *keys, const float *values, Index index, Index block_count) {
                          weights.add(keys, values, index, block_count);
                        });
    add_weights(statistics, weights, indices, count, factors);
    for_each_base(head, heads, q, tokens, rows, &Observation::weighed_tokens,
                  [&](const HeadRows &turned) {
                    for (Index row = 0; row < count; ++row) {
                      for (Index i = 0; i < d; ++i) rows[row * d + i] *= factors[row];
                    }
                    add_weighted_queries(statistics, turned);
                  });
  }

  /// Adds the sums of weights, each for the tokens that it stands for. factors: square roots of what a
  /// base adds of each query.
  void add_weights(QueryStatistics &statistics, const AttentionWeights &weights, const Index *indices,
                   Index count, float *factors) const {
    const int bases = frame() == nullptr ? 1 : Observation::query_bases;
    const double scale = static_cast<double>(attention_scale_);
    for (Index row = 0; row < count; ++row) {
      const double tokens = Observation::weighed_tokens(indices[row]);
      const AttentionWeights::Weights of_row = weights.weights(row);
      const double key_weight = tokens * scale * scale * of_row.key;
      statistics.sums(&HeadSums::far_queries)[0] += of_row.far ? tokens : 0;
      statistics.sums(&HeadSums::key_weight)[0] += key_weight;
      statistics.sums(&HeadSums::value_weight)[0] += tokens * of_row.value;
      statistics.sums(&HeadSums::output_square)[0] += tokens * of_row.output_square;
      factors[row] = static_cast<float>(std::sqrt(key_weight / bases));
    }
  }

  template <Element S>
  void add_keys(QueryStatistics &statistics, Index head, TensorView<const S> k,
                const ObservedTokens &tokens, float *rows) const {
    const Index d = k.head_dim;
    const Index tile_row = observation_.tile_row(tokens.index);
    for (Index token = 0; token < tokens.count; ++token) {
      convert_row(k.row(tokens.first + token, head), d, rows + token * d);
      if (frame() == nullptr) continue;
      const Index row = (tile_row + token) % frame()->rows();
      Turn(frame()->table(), row - tokens.position - token).apply(rows + token * d);
    }
    squat::add_keys(statistics, {rows, tokens.count, d}, tile_row);
  }

  template <Element S>
  void add_values(QueryStatistics &statistics, Index head, TensorView<const S> v,
                  const ObservedTokens &tokens, float *rows) const {
    for (Index token = 0; token < tokens.count; ++token) {
      convert_row(v.row(tokens.first + token, head), v.head_dim, rows + token * v.head_dim);
    }
    squat::add_values(statistics, {rows, tokens.count, v.head_dim});
  }

  /// Whether values may be coded about their mean: where there are scales of keys to say so.
  bool knows_values() const {
    return layout_.key_bits < 16 && layout_.value_bits < 16 &&
           layout_.value_coding == ValueCoding::symmetric;
  }

  PageLayout layout_;
  int layer_;
  const TileTables *tiles_;
  Observation observation_;
  Index group_;
  FarTokens far_;
  float attention_scale_;
  bool weighs_;
  bool learns_;
  bool observed_ = false;  // some tokens
  bool learnt_ = false;
  bool learnt_nothing_ = false;  // and never will
  Statistics statistics_;        // a KV head each, while they are wanted
  std::vector<KeyQuantizer> quantizers_;
  std::vector<QueryTransform> transforms_;
  std::vector<std::vector<float>> value_means_;  // of a KV head each
  Allocation allocation_;
  std::vector<double> value_weights_;  // HeadSums::value_weight of each head, where bits are shared
  double output_square_ = 0;           // HeadSums::output_square of all heads, likewise
  std::optional<BitShares> shares_;
  std::size_t code_bytes_;  // of a page
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
