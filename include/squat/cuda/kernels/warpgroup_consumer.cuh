#pragma once

// A warpgroup of attend_warpgroups.cuh that has 64 query rows: their scores, softmax and sums, in
// registers.

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "squat/cuda/kernels/barrier_copy.cuh"
#include "squat/cuda/kernels/exact_blocks.cuh"
#include "squat/cuda/kernels/query_rows.cuh"
#include "squat/cuda/kernels/row_call.cuh"
#include "squat/cuda/kernels/row_sums.cuh"
#include "squat/cuda/kernels/score_rule.cuh"
#include "squat/cuda/kernels/shared_memory.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/kernels/warpgroup_memory.cuh"
#include "squat/cuda/kernels/warpgroup_products.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// A warpgroup that has query rows.
template <class Memory, int Group, bool Ruled, class S>
class GroupConsumer : public GroupSegment<Memory, Group, Ruled, S> {
 public:
  using Segment = GroupSegment<Memory, Group, Ruled, S>;
  using Segment::HeadDim, Segment::step_tiles, Segment::rows;

  __device__ GroupConsumer(const RowCall<S> &rows_call, const Memory &memory, int &met,
                           const BatchEntry &entry, const RowShape &shape, int first_page, int head,
                           int tile)
      : Segment(rows_call, memory, met, entry, shape, first_page, head, tile) {
    const AttendCall<S> &call = rows_call.call;
    const int all = call.rows(entry), length = state_.length();
    const int first = own_row(0);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first + lane_index() / 4 + 8 * i;
      limit_[i] = row < all ? call.template seen<Ruled>(entry, length, row) : 0;
    }
    least_limit_ = call.template least_seen<Ruled>(entry, length, first);
    if constexpr (Ruled)
      first_seen_ =
          rule().first_seen(call.template most_seen<Ruled>(entry, length, min(first + 16, all) - 1));
    face(0);
  }

  __device__ void clear() {
#pragma unroll
    for (auto &sums : sums_) sums[0] = sums[1] = sums[2] = sums[3] = 0;
    reference_[0] = reference_[1] = no_reference;
  }

  /// Attends to the units [first, last) of exact rows, or of pages.
  __device__ void attend(bool exact, int first, int last) {
    if (first >= last) return;
    int met = met_;
    met_ += last - first;
    if (base_ != 0 && (exact || !in_place())) face(0);
    Scores s;
    bool masked = begin_scores(exact, first, met, s);
    wait_for_products();
    arrive_at(memory_.free(met, 0));
    bool raises = weigh(exact, first, met, masked, s);
#pragma unroll 1
    for (int unit = first + 1; unit < last; ++unit, ++met) {
      uint4 p[step_tiles];
      make_weights(s, raises, p);
      masked = begin_scores(exact, unit, met + 1, s);
      add_values(met, p);
      wait_for_products<1>();
      arrive_at(memory_.free(met + 1, 0));
      raises = weigh(exact, unit, met + 1, masked, s);
      keep_here(s);
      wait_for_products();
      arrive_at(memory_.free(met, 1));
    }
    uint4 p[step_tiles];
    make_weights(s, raises, p);
    add_values(met, p);
    wait_for_products();
    arrive_at(memory_.free(met, 1));
  }

  /// Writes what was found out.
  __device__ void store(std::uint8_t *slot) const {
    const int t = lane_index() % 4, own = group() * group_rows + 16 * warp() + lane_index() / 4;
    auto *logarithms = reinterpret_cast<float *>(slot + rows * HeadDim * 2);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = own + 8 * i;
      const float weight = sums_[HeadDim / 8][2 * i], inverse = weight > 0 ? 1 / weight : 0.0f;
      if (t == 0) logarithms[row] = weight > 0 ? reference_[i] + log2f(weight) : no_reference;
      auto *words = reinterpret_cast<Word *>(slot + row * HeadDim * 2) + t;
#pragma unroll
      for (int n = 0; n < HeadDim / 8; ++n) {
        words[4 * n] = halves(sums_[n][2 * i] * inverse, sums_[n][2 * i + 1] * inverse);
      }
    }
  }

 private:
  using Segment::call_, Segment::memory_, Segment::met_, Segment::entry_, Segment::state_,
      Segment::shape_, Segment::head_, Segment::first_row_, Segment::exact_blocks, Segment::in_place,
      Segment::rule;
  static constexpr int steps = HeadDim / 16;
  /// A lane, g and t, has of rows g and g + 8 of the warp's 16 the tokens 8 n + 2 t and + 1.
  using Scores = float[2 * step_tiles][4];

  __device__ static int group() { return static_cast<int>(threadIdx.x) / group_threads; }
  __device__ static int warp() { return warp_index() % 4; }
  /// Of the entry's query rows, the warp's `i`-th.
  __device__ int own_row(int i) const { return first_row_ + group() * group_rows + 16 * warp() + i; }
  __device__ std::uint8_t *queries() const {
    return memory_.memory + Memory::queries + group() * Memory::query_bytes;
  }

  /// Queries, turned back by `base`; no product with them is on its way.
  __device__ void face(long long base) {
    const AttendCall<S> &call = call_.call;
    auto *units =
        reinterpret_cast<float *>(memory_.memory + Memory::units) + group() * group_rows + 16 * warp();
    face_rows<SharedQueries<group_rows>, HeadDim, 1>(
        reinterpret_cast<uint4 *>(queries()) + warp() * warp_lanes, units,
        query_rows(call, entry_, head_), own_row(0), &call.codings[state_.coding].tiles, base);
#pragma unroll
    for (int i = 0; i < 2; ++i) unit_[i] = units[lane_index() / 4 + 8 * i];
    base_ = base;
    publish_operand();
    sync_threads(1 + group(), group_threads);
  }

  /// Begins a group of products: scores of a unit. Returns whether some of them do not count.
  __device__ bool begin_scores(bool exact, int unit, int met, Scores &s) {
    wait_for(memory_.full(met, 0), Memory::phase(met));
    if (!exact && in_place()) {
      const long long base = of_first(memory_.page(met).base);
      if (base != base_) face(base);
    }
    const std::uint64_t q = operand_name(shared_address(queries())),
                        k = operand_name(memory_.key_stage(met));
    begin_products();
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      multiply_step(s, q + step * operand_step_bytes(group_rows) / 16,
                    k + step * operand_step_bytes(Memory::tokens) / 16, step > 0);
    }
    commit_products();
    return is_masked(exact, unit, met);
  }

  /// Scores become weights, relative to a reference that holds them. Returns whether it was raised: what
  /// is relative to the old one has to be multiplied by factor_ then.
  __device__ bool weigh(bool exact, int unit, int met, bool masked, Scores &s) {
    if constexpr (Ruled) {
      if (rule().bends()) bend(exact, unit, met, s);
    }
    if (masked) mask(exact, unit, met, s);
    float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < 2 * step_tiles; ++n) {
      most[0] = fmaxf(most[0], fmaxf(s[n][0], s[n][1]));
      most[1] = fmaxf(most[1], fmaxf(s[n][2], s[n][3]));
    }
    most[0] *= unit_[0], most[1] *= unit_[1];
    const bool exceeds = most[0] > reference_[0] + slack || most[1] > reference_[1] + slack;
    const bool raises = __any_sync(0xffffffffu, exceeds);
    if (raises) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        most[i] = fmaxf(most[i], __shfl_xor_sync(0xffffffffu, most[i], 1));
        most[i] = fmaxf(most[i], __shfl_xor_sync(0xffffffffu, most[i], 2));
        const float reference = fmaxf(reference_[i], most[i]);
        factor_[i] = power_of_two(reference_[i] - reference);
        reference_[i] = reference;
      }
    }
#pragma unroll
    for (int n = 0; n < 2 * step_tiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[n][j] = power_of_two(fmaf(s[n][j], unit_[j / 2], -reference_[j / 2]));
      }
    }
    return raises;
  }

  /// Has weights computed here, while products are on their way, and not behind what follows: a branch
  /// on all of them that is never taken.
  __device__ static void keep_here(const Scores &s) {
    unsigned bits = 0;
#pragma unroll
    for (int n = 0; n < 2 * step_tiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) bits |= __float_as_uint(s[n][j]);
    }
    if (bits == 0xffffffffu) __nanosleep(1);  // weights have no sign
  }

  /// Weights as A, and sums relative to the reference of these; no product of sums is on its way.
  __device__ void make_weights(const Scores &s, bool raises, uint4 (&p)[step_tiles]) {
    if (raises) {
#pragma unroll
      for (auto &sums : sums_) {
        sums[0] *= factor_[0], sums[1] *= factor_[0], sums[2] *= factor_[1], sums[3] *= factor_[1];
      }
    }
#pragma unroll
    for (int k = 0; k < step_tiles; ++k) {
      const auto &low = s[2 * k], &high = s[2 * k + 1];
      p[k] = {halves(low[0], low[1]), halves(low[2], low[3]), halves(high[0], high[1]),
              halves(high[2], high[3])};
    }
  }

  /// Begins a group of products: sums += weights values.
  __device__ void add_values(int met, const uint4 (&p)[step_tiles]) {
    wait_for(memory_.full(met, 1), Memory::phase(met));
    const std::uint64_t v = operand_name(memory_.value_stage(met));
    begin_products();
#pragma unroll
    for (int k = 0; k < step_tiles; ++k)
      multiply_step(sums_, p[k], v + k * Memory::value_step / 16, true);
    commit_products();
  }

  /// What the first lane reads, which alone arrives at barriers.
  template <class Number>
  __device__ static Number of_first(const Number &shared) {
    const Number x = lane_index() == 0 ? shared : Number{};
    return __shfl_sync(0xffffffffu, x, 0);
  }

  /// Whether tokens of a unit do not count, or rows of the warp do not see them.
  __device__ bool is_masked(bool exact, int unit, int met) const {
    if (!exact) {
      const StagedPage &page = memory_.page(met);
      const bool masked =
          lane_index() == 0 && (page.first != 0 || page.tokens != Group ||
                                page.before + Group > least_limit_ || is_behind_window(page.before));
      return __any_sync(0xffffffffu, masked);
    }
    const TokenTile last = exact_blocks().tokens(unit * step_tiles + step_tiles - 1);
    return unit * step_tiles < exact_blocks().of_sinks() ||
           last.position + 16 > min(last.end, least_limit_) ||
           is_behind_window(exact_blocks().tokens(unit * step_tiles).position);
  }
  /// Whether rows of the warp do not see a position that they once saw.
  __device__ bool is_behind_window(int position) const { return Ruled && position < first_seen_; }

  /// Calls visit(score, row, position, tile) for each of the lane's scores of a unit, in the order of
  /// tiles of 16 tokens; row: 0 or 1.
  template <class Visit>
  __device__ void visit_scores(bool exact, int unit, int met, Scores &s, Visit &&visit) const {
    TokenTile of_page{};
    if (!exact) {
      const StagedPage &page = memory_.page(met);
      const int before = of_first(page.before);
      of_page = {before - of_first(page.first), before, before + of_first(page.tokens)};
    }
#pragma unroll
    for (int n = 0; n < 2 * step_tiles; ++n) {
      TokenTile tile = exact ? exact_blocks().tokens(unit * step_tiles + n / 2) : of_page;
      if (!exact) tile.position += n / 2 * 16;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        visit(s[n][j], j / 2, tile.position + n % 2 * 8 + lane_index() % 4 * 2 + j % 2, tile);
    }
  }
  /// Takes out the scores of tokens that do not count, or that rows do not see.
  __device__ void mask(bool exact, int unit, int met, Scores &s) const {
    visit_scores(exact, unit, met, s, [&](float &score, int row, int at, const TokenTile &tile) {
      const int begin = Ruled ? max(tile.begin, rule().first_seen(limit_[row])) : tile.begin;
      if (at < begin || at >= min(tile.end, limit_[row])) score = -INFINITY;
    });
  }
  /// Scores become what the rule makes of them.
  __device__ void bend(bool exact, int unit, int met, Scores &s) const {
    if (rule().soft_cap > 0) {
      cap_scores(rule(), unit_, [&](auto &&visit) {
#pragma unroll
        for (auto &of_columns : s) {
#pragma unroll
          for (int j = 0; j < 4; ++j) visit(of_columns[j], j / 2);
        }
      });
    }
    if (rule().slopes == nullptr) return;
    const int heads = call_.call.heads_per_kv_head;
    float slopes[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      slopes[i] = rule().slope(head_ * heads + own_row(lane_index() / 4 + 8 * i) % heads) *
                  inverse_of_power(unit_[i]);
    }
    visit_scores(exact, unit, met, s, [&](float &score, int row, int at, const TokenTile &) {
      score = fmaf(-slopes[row], static_cast<float>(limit_[row] - 1 - at), score);
    });
  }

  static constexpr float slack = 8;

  int limit_[2];        // of the lane's rows: positions below are seen
  int least_limit_;     // of the warp's
  int first_seen_ = 0;  // no window of the warp's rows begins behind this position
  float unit_[2];       // what queries were divided by
  float reference_[2], factor_[2];
  long long base_ = 0;              // that queries are turned back by
  float sums_[HeadDim / 8 + 1][4];  // the last: of weights, columns alike
};

}  // namespace squat::cuda
