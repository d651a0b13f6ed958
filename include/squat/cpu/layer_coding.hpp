#pragma once

// What a layer's codings learn and have learnt, a KV head each.

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "squat/cache/options.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/moments.hpp"
#include "squat/coding/observation.hpp"
#include "squat/coding/query_statistics.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cpu/head_coding.hpp"
#include "squat/cpu/kernels/vector.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// The statistics and codings of one layer, for all sequences or for one.
class LayerCoding {
 public:
  /// tiles: of the keys, null for the frame they come in.
  LayerCoding(const Options &options, int key_bits, int layer, const TileTables *tiles)
      : layer_(layer),
        tiles_(tiles),
        observation_{options.sinks, tiles ? tiles->frame.rows() : 0},
        group_(options.page_tokens),
        statistics_(static_cast<std::size_t>(options.kv_heads)),
        quantizers_(
            static_cast<std::size_t>(options.kv_heads),
            KeyQuantizer(*options.coding, *options.fit, options.orthogonal, key_bits, options.head_dim)),
        transforms_(static_cast<std::size_t>(options.kv_heads)) {}

  int layer() const { return layer_; }
  const TileTables *tiles() const { return tiles_; }
  const KeyQuantizer &quantizer(Index head) const { return quantizers_[static_cast<std::size_t>(head)]; }
  const QueryTransform &transform(Index head) const {
    return transforms_[static_cast<std::size_t>(head)];
  }
  const QueryStatistics *statistics(Index head) const {
    return statistics_[static_cast<std::size_t>(head)].get();
  }

  /// Elements of observe()'s scratch.
  static Index scratch_elements(Index heads, Index head_dim) {
    return std::max<Index>(heads, 1) * run_tokens * head_dim;
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
  };

  Backup back_up() const {
    Backup backup{{}, learnt_};
    for (const auto &statistics : statistics_) {
      backup.statistics.push_back(statistics ? std::make_unique<QueryStatistics>(*statistics) : nullptr);
    }
    return backup;
  }

  void restore(Backup backup) {
    statistics_ = std::move(backup.statistics);
    if (backup.learnt) return;
    learnt_ = false;
    for (KeyQuantizer &quantizer : quantizers_) quantizer.forget();
    for (QueryTransform &transform : transforms_) transform = QueryTransform();
  }

  /// Adds tokens to the statistics of one KV head, `heads` query heads to each.
  /// Without queries (q.tokens = 0) keys alone are added.
  template <Element S>
  void observe(Index head, Index heads, TensorView<const S> q, TensorView<const S> k,
               const ObservedTokens &tokens, const Prior *prior, float *rows) {
    QueryStatistics &statistics = make_statistics(head, k.head_dim, prior);
    for (Index run = 0; run < tokens.count; run += run_tokens) {
      const Index count = std::min(run_tokens, tokens.count - run);
      const ObservedTokens part{tokens.first + run, count, tokens.index + run, tokens.position + run};
      if (q.tokens > 0) add_queries(statistics, head, heads, q, part, rows);
      add_keys(statistics, head, k, observation_.keys(part), rows);
    }
  }

  /// Fixes the coding of one KV head from its statistics.
  template <class Real = double>
  void learn(Index head, bool keep_statistics) {
    const auto i = static_cast<std::size_t>(head);
    if (statistics_[i]) {
      quantizers_[i].learn<Real>(*statistics_[i], frame());
      transforms_[i] = QueryTransform(quantizers_[i], tiles_);
    }
    if (!keep_statistics) statistics_[i].reset();
  }

  /// All KV heads have learnt.
  void note_learnt() { learnt_ = true; }

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
    return sum;
  }

 private:
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

  template <Element S>
  void add_queries(QueryStatistics &statistics, Index head, Index heads, TensorView<const S> q,
                   const ObservedTokens &tokens, float *rows) const {
    const Index d = q.head_dim;
    const auto add = [&](auto base_of) {
      float *row = rows;
      for (Index token = 0; token < tokens.count; ++token) {
        for (Index shared = 0; shared < heads; ++shared, row += d) {
          convert_row(q.row(tokens.first + token, head * heads + shared), d, row);
        }
        const Index base = base_of(tokens.position + token);
        if (base == 0) continue;
        const Turn turn(frame()->table(), -base);
        for (Index shared = 1; shared <= heads; ++shared) turn.apply(row - shared * d);
      }
      squat::add_queries(statistics, {rows, tokens.count * heads, d});
    };
    if (frame() == nullptr) return add([](Index) { return Index{0}; });
    for (std::size_t base = 0; base < Observation::query_bases; ++base) {
      add([&](Index position) { return observation_.bases(position)[base]; });
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

  int layer_;
  const TileTables *tiles_;
  Observation observation_;
  Index group_;
  bool learnt_ = false;
  Statistics statistics_;  // a KV head each, while they are wanted
  std::vector<KeyQuantizer> quantizers_;
  std::vector<QueryTransform> transforms_;
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
