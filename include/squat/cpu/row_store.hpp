#pragma once

// Rows kept exact: the sinks and the window of one sequence and layer.

#include <algorithm>
#include <array>
#include <utility>

#include "squat/coding/rotary.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cpu/buffer.hpp"
#include "squat/cpu/exact_rows.hpp"
#include "squat/cpu/kernels/vector.hpp"

namespace squat::cpu::inline SQUAT_API_NAMESPACE {

/// Keys and values as `[kv_heads, capacity, head_dim]` in T, filled from the
/// front.
template <class T>
class RowStore {
 public:
  RowStore() = default;
  RowStore(Index kv_heads, Index head_dim, Index capacity)
      : kv_heads_(kv_heads),
        head_dim_(head_dim),
        capacity_(capacity),
        rows_(static_cast<std::size_t>(2 * kv_heads * capacity * head_dim)) {}

  Index tokens() const { return tokens_; }
  Index capacity() const { return capacity_; }
  std::size_t bytes() const { return rows_.bytes(); }

  ExactRows<T> view() const { return {rows_.data(), values(), tokens_, capacity_}; }

  /// Adds the rows [first, first + count) of k and v. There must be room.
  template <Element S>
  void append(TensorView<const S> k, TensorView<const S> v, Index first, Index count) {
    SQUAT_ASSERT(tokens_ + count <= capacity_);
    for (Index head = 0; head < kv_heads_; ++head) {
      T *key = rows_.data() + (head * capacity_ + tokens_) * head_dim_;
      T *value = values() + (head * capacity_ + tokens_) * head_dim_;
      for (Index token = first; token < first + count; ++token, key += head_dim_, value += head_dim_) {
        convert_row(k.row(token, head), head_dim_, key);
        convert_row(v.row(token, head), head_dim_, value);
      }
    }
    tokens_ += count;
  }

  /// Forgets the tokens [first, first + count).
  void erase(Index first, Index count) {
    if (count == 0) return;
    for (Index block = 0; block < 2 * kv_heads_; ++block) {
      T *rows = rows_.data() + block * capacity_ * head_dim_;
      std::copy(rows + (first + count) * head_dim_, rows + tokens_ * head_dim_,
                rows + first * head_dim_);
    }
    tokens_ -= count;
  }

  /// Turns the keys of the tokens from `first` on.
  void turn(Index first, const Turn &turn) {
    std::array<float, 2 * most_rotary_pairs> row;
    for (Index head = 0; head < kv_heads_; ++head) {
      for (Index token = first; token < tokens_; ++token) {
        T *key = rows_.data() + (head * capacity_ + token) * head_dim_;
        convert_row(key, head_dim_, row.data());
        turn.apply(row.data());
        convert_row(row.data(), head_dim_, key);
      }
    }
  }

  /// Forgets all but the first `tokens` tokens.
  void truncate(Index tokens) { tokens_ = std::min(tokens_, tokens); }

  /// Forgets the first `count` tokens and moves the rest into `store`, which
  /// takes this one's place.
  void move_to(RowStore store, Index count) {
    SQUAT_ASSERT(tokens_ - count <= store.capacity_);
    for (Index block = 0; block < 2 * kv_heads_; ++block) {
      const T *from = rows_.data() + (block * capacity_ + count) * head_dim_;
      std::copy(from, from + (tokens_ - count) * head_dim_,
                store.rows_.data() + block * store.capacity_ * head_dim_);
    }
    store.tokens_ = tokens_ - count;
    *this = std::move(store);
  }

 private:
  T *values() const { return rows_.data() + rows_.size() / 2; }

  Index kv_heads_ = 0;
  Index head_dim_ = 0;
  Index capacity_ = 0;
  Index tokens_ = 0;
  Buffer<T> rows_;
};

}  // namespace squat::cpu::inline SQUAT_API_NAMESPACE
