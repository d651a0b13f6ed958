#pragma once

// What QueryStatistics holds of a layer's KV heads, gathered on the device: no call waits for the host.

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "squat/coding/coding_record.hpp"
#include "squat/coding/observation.hpp"
#include "squat/coding/query_statistics.hpp"
#include "squat/core/config.hpp"
#include "squat/cuda/coding/learn_bases.cuh"
#include "squat/cuda/coding/moments.cuh"
#include "squat/cuda/coding/weigh_attention.cuh"
#include "squat/cuda/error.hpp"
#include "squat/cuda/kernels/launch_behind.cuh"
#include "squat/cuda/state/device_buffer.hpp"

namespace squat::cuda {

/// Consecutive tokens of one sequence, rows of a call's tensors.
template <class S>
struct ObservedRows {
  DeviceTensor<const S> q;  ///< data null: keys alone
  DeviceTensor<const S> k;
  DeviceTensor<const S> v;  ///< data null: not asked for
  int heads_per_kv_head;
  long long first;  ///< row of the first
  int tokens;
  long long index;     ///< tokens of the sequence before them
  long long position;  ///< rotary position of the first
};

class DeviceStatistics {
 public:
  /// sinks: tokens of a sequence whose keys are left out. rows: of the tile frame, 1 without one.
  DeviceStatistics(Index kv_heads, Index head_dim, Index group, Index rows, Index sinks,
                   cudaStream_t stream)
      : kv_heads_(static_cast<int>(kv_heads)),
        group_(static_cast<int>(group)),
        observation_{sinks, rows > 1 ? rows : 0},
        layout_{head_dim, rows},
        row_counts_(static_cast<std::size_t>(rows)) {
    const auto doubles = static_cast<std::size_t>(kv_heads * layout_.doubles);
    const auto floats = static_cast<std::size_t>(kv_heads * layout_.floats);
    const auto filling = static_cast<std::size_t>(2 * kv_heads * head_dim);
    memory_ = DeviceBuffer<std::byte>(doubles * sizeof(double) + filling * sizeof(float2) +
                                      floats * sizeof(float));
    doubles_ = {reinterpret_cast<double *>(memory_.data()), doubles};
    filling_ = {reinterpret_cast<float2 *>(doubles_.data() + doubles), filling};
    floats_ = {reinterpret_cast<float *>(filling_.data() + filling), floats};
    memory_.fill(0, stream);
  }

  /// A copy, made on the stream.
  std::unique_ptr<DeviceStatistics> copy(cudaStream_t stream) const {
    auto other = std::make_unique<DeviceStatistics>(kv_heads_, layout_.head_dim, group_, layout_.rows,
                                                    observation_.sinks, stream);
    other->queries_ = queries_;
    other->values_ = values_;
    other->groups_ = groups_;
    other->row_counts_ = row_counts_;
    other->in_group_ = in_group_;
    other->odd_ = odd_;
    other->adopted_ = adopted_;
    check(cudaMemcpyAsync(other->memory_.data(), memory_.data(), memory_.bytes(),
                          cudaMemcpyDeviceToDevice, stream),
          "copy of statistics");
    return other;
  }

  /// Bytes of the workspace in which observe() adds so many tokens.
  template <int HeadDim>
  static std::size_t workspace_bytes(Index kv_heads, Index tokens) {
    // At most every token begins a run of queries and one of keys.
    const std::size_t together = std::min<std::size_t>(2 * static_cast<std::size_t>(tokens), most_runs);
    return raw_bytes<HeadDim>(kv_heads, together) +
           together * query_bases * MomentShape<HeadDim>::units * sizeof(float2);
  }

  /// All that is there, a KV head each. Waits for the stream.
  std::vector<StatisticsRecord> record(cudaStream_t stream) const {
    if (!adopted_.empty()) return adopted_;
    std::vector<float2> filling(filling_.size());
    download<float2>(filling_.data(), filling, stream);
    std::vector<StatisticsRecord> records;
    for (const QueryStatistics &statistics : read(stream)) {
      StatisticsRecord &record = records.emplace_back(statistics.record());
      record.in_group = in_group_;
      if (in_group_ == 0) continue;
      const std::size_t half_of_all = odd_ ? filling.size() / 2 : 0;
      const float2 *of_head = filling.data() + half_of_all + (records.size() - 1) * record.low.size();
      for (std::size_t i = 0; i < record.low.size(); ++i) {
        record.low[i] = of_head[i].x;
        record.high[i] = of_head[i].y;
      }
    }
    return records;
  }

  /// Becomes what records say, a KV head each. They are kept as they are until something is added, for
  /// what the device keeps of them has fewer sums. Waits for the stream.
  void adopt(std::vector<StatisticsRecord> records, cudaStream_t stream) {
    const double *counts = records.front().doubles.data();  // the same in all heads
    queries_ = counts[layout_.queries.first];
    groups_ = counts[layout_.groups.first];
    values_ = counts[layout_.values.first];
    std::copy_n(counts + layout_.row_counts.first, row_counts_.size(), row_counts_.begin());
    in_group_ = static_cast<int>(records.front().in_group);
    odd_ = false;
    for (std::size_t head = 0; head < records.size(); ++head) {
      const StatisticsRecord &record = records[head];
      upload<double>(record.doubles, doubles_.data() + head * record.doubles.size(), stream);
      upload<float>(record.floats, floats_.data() + head * record.floats.size(), stream);
      std::vector<float2> filling;
      for (std::size_t i = 0; i < record.low.size(); ++i)
        filling.push_back({record.low[i], record.high[i]});
      upload<float2>(filling, filling_.data() + head * filling.size(), stream);
      check(cudaStreamSynchronize(stream), "statistics");
    }
    adopted_ = std::move(records);
  }

  std::size_t bytes() const { return memory_.bytes(); }

  /// Adds tokens, as cpu::LayerCoding::observe() does for every head. tables: the layer's; workspace:
  /// made larger where needed.
  template <int HeadDim, class S>
  void observe(const ObservedRows<S> &rows, const TileTables &tables, DeviceBuffer<std::byte> &workspace,
               cudaStream_t stream) {
    SQUAT_ASSERT(layout_.head_dim == HeadDim && layout_.rows == std::max(1, tables.frame));
    adopted_.clear();
    const ObservedTokens coded =
        observation_.keys({static_cast<Index>(rows.first), rows.tokens, static_cast<Index>(rows.index),
                           static_cast<Index>(rows.position)});
    std::vector<MomentRun> runs;
    if (rows.q.data != nullptr) {
      add_query_runs(rows, tables.frame, runs);
      queries_ += static_cast<double>(rows.tokens) * rows.heads_per_kv_head * bases(tables);
    }
    const ObservedKeys keys = {coded.first, static_cast<int>(coded.count),
                               static_cast<int>(observation_.tile_row(coded.index)), coded.position};
    const std::size_t of_queries = runs.size();
    // Sums of values, sums of keys and moments are different arrays: a launch may begin before the one
    // in front ends, for which it waits at its own end.
    const bool overlap = launches_overlap(), has_values = keys.tokens > 0 && rows.v.data != nullptr;
    if (has_values) add_values<HeadDim>(rows.v, keys, stream);
    if (keys.tokens > 0) {
      add_key_runs(keys, tables.frame, runs);
      add_keys<HeadDim>(rows.k, keys, tables, overlap && has_values, stream);
    }
    add_moments<HeadDim>(rows, layout_, tables, runs, of_queries, overlap && keys.tokens > 0, workspace,
                         stream);
    check(cudaGetLastError(), "statistics");
  }

  /// Bases that a query is turned back by.
  static int bases(const TileTables &tables) { return tables.frame > 0 ? query_bases : 1; }

  /// Adds what attention was weighed to be (weigh_attention.cuh). rows: their queries, weighed, and no
  /// keys; sums: of each.
  template <int HeadDim>
  void add_weighed(const ObservedRows<float> &rows, const float4 *sums, const TileTables &tables,
                   DeviceBuffer<std::byte> &workspace, cudaStream_t stream) {
    adopted_.clear();
    const int query_heads = kv_heads_ * rows.heads_per_kv_head;
    add_weights<<<static_cast<unsigned>(kv_heads_), warp_lanes, 0, stream>>>(
        sums, rows.tokens, query_heads, rows.heads_per_kv_head, layout_, doubles_.data());
    std::vector<MomentRun> runs;
    add_query_runs(rows, tables.frame, runs);
    HeadSums weighted = layout_;
    weighted.query_moment = layout_.weighted_moment;
    add_moments<HeadDim>(rows, weighted, tables, runs, runs.size(), false, workspace, stream);
    check(cudaGetLastError(), "statistics");
  }

  /// The bases of what has been added so far, a KV head each, rounded to bytes or else to words. They
  /// stay in the workspace, where LearningMemory says. Waits for the stream.
  template <int HeadDim>
  std::vector<LearntBasis<HeadDim>> learn_bases(const TileTables &tables, bool bytes,
                                                DeviceBuffer<std::byte> &workspace,
                                                cudaStream_t stream) const {
    const auto heads = static_cast<std::size_t>(kv_heads_);
    const LearningMemory<HeadDim> memory(workspace, heads, row_counts_.size());
    upload<double>(row_counts_, memory.row_counts, stream);
    const LearnCall<HeadDim> call{.layout = layout_,
                                  .doubles = doubles_.data(),
                                  .floats = floats_.data(),
                                  .row_counts = memory.row_counts,
                                  .keys = keys(),
                                  .draws = draws(),
                                  .tables = tables,
                                  .bytes = bytes,
                                  .matrices = memory.matrices,
                                  .learnt = memory.learnt};
    launch_learn_bases(call, kv_heads_, stream);
    std::vector<LearntBasis<HeadDim>> bases(heads);
    download<LearntBasis<HeadDim>>(memory.learnt, bases, stream);
    return bases;
  }
  /// What evidence_of() counts: keys, or rows of the tile that have any, and queries.
  double draws() const {
    if (layout_.rows == 1) return keys();
    return static_cast<double>(
        std::count_if(row_counts_.begin(), row_counts_.end(), [](double keys) { return keys > 0; }));
  }
  double keys() const { return std::accumulate(row_counts_.begin(), row_counts_.end(), 0.0); }
  double queries() const { return queries_; }
  double values() const { return values_; }

  /// What has been added so far, a KV head each. Waits for the stream.
  std::vector<QueryStatistics> read(cudaStream_t stream) const {
    std::vector<double> doubles(doubles_.size());
    std::vector<float> floats(floats_.size());
    download<double>(doubles_.data(), doubles, stream);
    download<float>(floats_.data(), floats, stream);
    std::vector<QueryStatistics> statistics;
    for (int head = 0; head < kv_heads_; ++head) {
      double *of_head = doubles.data() + head * layout_.doubles;
      of_head[layout_.queries.first] = queries_;
      of_head[layout_.groups.first] = groups_;
      of_head[layout_.values.first] = values_;
      std::copy(row_counts_.begin(), row_counts_.end(), of_head + layout_.row_counts.first);
      if (layout_.rows == 1) {  // the sums of the one row are those of all
        const double *sums = of_head + layout_.key_sum.first;
        std::transform(sums, sums + layout_.head_dim,
                       floats.data() + head * layout_.floats + layout_.row_sums.first,
                       [](double sum) { return static_cast<float>(sum); });
      }
      statistics.emplace_back(layout_.head_dim, group_, layout_.rows)
          .add_sums(of_head, floats.data() + head * layout_.floats);
    }
    return statistics;
  }

 private:
  int frame_rows() const { return static_cast<int>(layout_.rows); }

  template <class S>
  void add_query_runs(const ObservedRows<S> &rows, int frame, std::vector<MomentRun> &runs) const {
    const int most = std::max(1, most_run_rows / rows.heads_per_kv_head);
    const auto bases_of = [&](int token) {
      if (frame == 0) return std::array<Index, query_bases>{};
      return observation_.bases(static_cast<Index>(rows.position) + token);
    };
    for (int token = 0; token < rows.tokens;) {
      const std::array<Index, query_bases> at = bases_of(token);
      // Bases never fall from a token to the next: those of `count` tokens are alike, of `end` not.
      int count = 1, end = std::min(most, rows.tokens - token) + 1;
      while (end - count > 1) {
        const int middle = (count + end) / 2;
        (bases_of(token + middle - 1) == at ? count : end) = middle;
      }
      runs.push_back({{at[0], at[1], at[2]}, static_cast<int>(rows.first) + token, count});
      token += count;
    }
  }

  void add_key_runs(const ObservedKeys &keys, int frame, std::vector<MomentRun> &runs) {
    constexpr int most = 256;
    for (int token = 0; token < keys.tokens;) {
      const int row = (keys.row + token) % frame_rows();
      const int left = frame > 0 ? frame - row : most;
      const int count = std::min({keys.tokens - token, left, most});
      const long long base = frame > 0 ? keys.position + token - row : 0;
      runs.push_back({{base, 0, 0}, static_cast<int>(keys.first) + token, count});
      for (int i = 0; i < count; ++i)
        row_counts_[static_cast<std::size_t>(frame > 0 ? row + i : 0)] += 1;
      token += count;
    }
  }

  template <int HeadDim>
  static std::size_t raw_bytes(Index kv_heads, std::size_t runs) {
    return runs * static_cast<std::size_t>(kv_heads) * HeadDim * HeadDim * sizeof(float);
  }

  template <int HeadDim, class S>
  void add_moments(const ObservedRows<S> &rows, const HeadSums &layout, const TileTables &tables,
                   const std::vector<MomentRun> &runs, std::size_t of_queries, bool overlaps,
                   DeviceBuffer<std::byte> &workspace, cudaStream_t stream) {
    using Shape = MomentShape<HeadDim>;
    const std::size_t together = std::min<std::size_t>(runs.size(), Shape::runs);
    const std::size_t raw_size = raw_bytes<HeadDim>(kv_heads_, together);
    const std::size_t bytes = raw_size + together * query_bases * Shape::units * sizeof(float2);
    if (workspace.bytes() < bytes) workspace = DeviceBuffer<std::byte>(bytes);
    auto *raw = reinterpret_cast<float *>(workspace.data());
    auto *angles = reinterpret_cast<float2 *>(workspace.data() + raw_size);
    const auto heads = static_cast<unsigned>(kv_heads_);
    for (std::size_t first = 0; first < runs.size(); first += Shape::runs) {
      MomentRuns part{};
      part.count = static_cast<int>(std::min<std::size_t>(runs.size() - first, Shape::runs));
      part.of_queries = static_cast<int>(
          std::min(of_queries - std::min(of_queries, first), static_cast<std::size_t>(part.count)));
      part.bases = bases(tables);
      std::copy_n(runs.begin() + static_cast<std::ptrdiff_t>(first), part.count, part.run);
      const dim3 moments(static_cast<unsigned>(part.count), heads, Shape::blocks);
      launch_behind("statistics", raw_moments<HeadDim, S>, moments, Shape::threads, 0, stream,
                    overlaps && first == 0, part, rows.q, rows.k, rows_aligned(rows.q),
                    rows_aligned(rows.k), rows.heads_per_kv_head, tables, raw, angles);
      const dim3 turns((Shape::unit_pairs + Shape::turn_pairs - 1) / Shape::turn_pairs, heads, 2);
      turned_moments<HeadDim><<<turns, Shape::turn_threads, 0, stream>>>(
          part, tables, raw, angles, layout, doubles_.data(), floats_.data());
    }
  }

  template <int HeadDim, class S>
  void add_keys(const DeviceTensor<const S> &k, const ObservedKeys &keys, const TileTables &tables,
                bool overlaps, cudaStream_t stream) {
    using Shape = RowSumShape<HeadDim>;
    const auto heads = static_cast<unsigned>(kv_heads_);
    const int blocks = tables.frame > 0 ? (tables.frame + Shape::rows - 1) / Shape::rows : Shape::slices;
    const dim3 rows(static_cast<unsigned>(blocks), heads);
    launch_behind("statistics", add_row_sums<HeadDim, S>, rows, Shape::threads, 0, stream, overlaps, k,
                  keys, tables, layout_, doubles_.data(), floats_.data());
    if (tables.frame > 0) return;  // ranges are not asked for then
    const int filled = in_group_ + keys.tokens;
    const dim3 groups(static_cast<unsigned>((filled + group_ - 1) / group_), heads);
    float2 *from = filling_.data(), *to = from + kv_heads_ * HeadDim;
    if (odd_) std::swap(from, to);
    add_key_ranges<HeadDim, S>
        <<<groups, HeadDim, 0, stream>>>(k, keys, group_, in_group_, from, to, layout_, doubles_.data());
    odd_ = !odd_;
    groups_ += filled / group_;
    in_group_ = filled % group_;
  }

  template <int HeadDim, class S>
  void add_values(const DeviceTensor<const S> &v, const ObservedKeys &keys, cudaStream_t stream) {
    using Shape = ValueSumShape<HeadDim>;
    const dim3 grid(Shape::slices, static_cast<unsigned>(kv_heads_));
    add_value_sums<HeadDim, S>
        <<<grid, Shape::threads, 0, stream>>>(v, rows_aligned(v), keys, layout_, doubles_.data());
    values_ += keys.tokens;
  }

  int kv_heads_, group_;
  Observation observation_;
  HeadSums layout_;
  double queries_ = 0, groups_ = 0, values_ = 0;
  std::vector<double> row_counts_;
  int in_group_ = 0;  // keys of the group that is filling
  bool odd_ = false;  // which half of filling_ holds it
  DeviceBuffer<std::byte> memory_;
  std::span<double> doubles_;  // [kv_heads, layout_.doubles]; the counts in them are the host's
  std::span<float2> filling_;  // [2, kv_heads, head_dim], ranges of the group that is filling
  std::span<float> floats_;    // [kv_heads, layout_.floats]
  std::vector<StatisticsRecord> adopted_;  // until something is added
};

}  // namespace squat::cuda
