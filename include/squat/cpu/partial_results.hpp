#pragma once

// What several tasks find out about the same queries, each over its own run of
// tokens: kept until all have ended, then merged by their log-sum-exp.

#include <algorithm>
#include <cstddef>

#include "squat/cpu/buffer.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"
#include "squat/cpu/softmax_state.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

class PartialResults {
 public:
  /// Makes room for `rows` rows. What was there is lost.
  void reserve(Index rows, Index head_dim) {
    head_dim_ = head_dim;
    if (static_cast<std::size_t>(rows) <= states_.size()) return;
    // Contexts grow token by token: room for twice as many saves the next ones.
    const auto room = static_cast<std::size_t>(2 * rows);
    sums_ = Buffer<float>(room * static_cast<std::size_t>(head_dim));
    states_ = Buffer<SoftmaxState>(room);
  }

  /// sums: [rows, head_dim].
  void store(Index first, Index rows, RowView<const float> sums, const SoftmaxState *states) {
    for (Index row = 0; row < rows; ++row) std::copy_n(sums[row], head_dim_, sum(first + row));
    std::copy_n(states, rows, states_.data() + first);
  }

  /// Adds what row `other` holds to row `row`.
  void merge(Index row, Index other) {
    const auto [own_factor, factor] = states_.data()[row].merge(states_.data()[other]);
    float *to = sum(row);
    const float *from = sum(other);
    for (Index i = 0; i < head_dim_; ++i) to[i] = to[i] * own_factor + from[i] * factor;
  }

  float *sum(Index row) const { return sums_.data() + row * head_dim_; }
  const SoftmaxState &state(Index row) const { return states_.data()[row]; }
  std::size_t bytes() const { return sums_.bytes() + states_.bytes(); }

 private:
  Index head_dim_ = 0;
  Buffer<float> sums_;
  Buffer<SoftmaxState> states_;
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
