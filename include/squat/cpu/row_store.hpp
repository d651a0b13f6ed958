#pragma once

// Rows that are not packed: the sinks and the tail of one sequence and layer.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <utility>

#include "squat/coding/rotary.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cpu/buffer.hpp"
#include "squat/cpu/kernels/stored_row.hpp"
#include "squat/cpu/stored_rows.hpp"

namespace squat::cpu::inline SQUAT_API_NAMESPACE {

/// Keys and values as `[kv_heads, capacity, row_elements]`, filled from the front: rows of T, or of
/// bytes with their scale.
template <RowElement Scalar>
class RowStore {
 public:
  RowStore() = default;
  RowStore(Index kv_heads, Index head_dim, Index capacity)
      : kv_heads_(kv_heads),
        head_dim_(head_dim),
        row_elements_(row_elements<Scalar>(head_dim)),
        capacity_(capacity),
        rows_(static_cast<std::size_t>(2 * kv_heads * capacity * row_elements_)) {}

  Index tokens() const { return tokens_; }
  Index capacity() const { return capacity_; }
  std::size_t bytes() const { return rows_.bytes(); }

  StoredRows<Scalar> view() const { return {rows_.data(), values(), tokens_, capacity_, row_elements_}; }

  /// Adds the rows [first, first + count) of k and v. There must be room.
  template <Element S>
  void append(TensorView<const S> k, TensorView<const S> v, Index first, Index count) {
    SQUAT_ASSERT(tokens_ + count <= capacity_);
    for (Index head = 0; head < kv_heads_; ++head) {
      const Index at = (head * capacity_ + tokens_) * row_elements_;
      Scalar *key = rows_.data() + at, *value = values() + at;
      for (Index token = first; token < first + count; ++token) {
        store_row(k.row(token, head), head_dim_, key);
        store_row(v.row(token, head), head_dim_, value);
        key += row_elements_;
        value += row_elements_;
      }
    }
    tokens_ += count;
  }

  /// Bytes of a token as write() gives them: its keys, then its values, a head after the other.
  static std::size_t token_bytes(Index kv_heads, Index head_dim) {
    return static_cast<std::size_t>(2 * kv_heads * row_elements<Scalar>(head_dim)) * sizeof(Scalar);
  }
  void write(Index first, Index count, std::byte *to) const {
    const std::size_t row = static_cast<std::size_t>(row_elements_) * sizeof(Scalar);
    for (Index token = first; token < first + count; ++token) {
      for (Index block = 0; block < 2 * kv_heads_; ++block, to += row)
        std::memcpy(to, rows_.data() + (block * capacity_ + token) * row_elements_, row);
    }
  }

  /// Adds tokens that write() gave. There must be room.
  void read(Index count, const std::byte *from) {
    SQUAT_ASSERT(tokens_ + count <= capacity_);
    const std::size_t row = static_cast<std::size_t>(row_elements_) * sizeof(Scalar);
    for (Index token = tokens_; token < tokens_ + count; ++token) {
      for (Index block = 0; block < 2 * kv_heads_; ++block, from += row)
        std::memcpy(rows_.data() + (block * capacity_ + token) * row_elements_, from, row);
    }
    tokens_ += count;
  }

  /// An empty store like this one, with room for its first `tokens` tokens and, where this has it, for a
  /// quarter more.
  RowStore room_for(Index tokens) const {
    return tokens == 0 ? RowStore()
                       : RowStore(kv_heads_, head_dim_, std::min(capacity_, tokens + tokens / 4));
  }

  /// Takes the first `tokens` tokens of another, having none and room for them.
  void copy(const RowStore &from, Index tokens) {
    SQUAT_ASSERT(tokens_ == 0 && tokens <= capacity_);
    tokens_ = tokens;
    if (tokens == 0) return;
    for (Index block = 0; block < 2 * kv_heads_; ++block) {
      std::copy_n(from.rows_.data() + block * from.capacity_ * row_elements_, tokens * row_elements_,
                  rows_.data() + block * capacity_ * row_elements_);
    }
  }

  /// Forgets the tokens [first, first + count).
  void erase(Index first, Index count) {
    if (count == 0) return;
    for (Index block = 0; block < 2 * kv_heads_; ++block) {
      Scalar *rows = rows_.data() + block * capacity_ * row_elements_;
      std::copy(rows + (first + count) * row_elements_, rows + tokens_ * row_elements_,
                rows + first * row_elements_);
    }
    tokens_ -= count;
  }

  /// Turns the keys of the tokens from `first` on. Rows of bytes are rounded once more.
  void turn(Index first, const Turn &turn) {
    std::array<float, largest_head_dim> row;
    for (Index head = 0; head < kv_heads_; ++head) {
      for (Index token = first; token < tokens_; ++token) {
        Scalar *key = rows_.data() + (head * capacity_ + token) * row_elements_;
        load_row(key, head_dim_, row.data());
        turn.apply(row.data());
        store_row(row.data(), head_dim_, key);
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
      const Scalar *from = rows_.data() + (block * capacity_ + count) * row_elements_;
      std::copy(from, from + (tokens_ - count) * row_elements_,
                store.rows_.data() + block * store.capacity_ * row_elements_);
    }
    store.tokens_ = tokens_ - count;
    *this = std::move(store);
  }

 private:
  Scalar *values() const { return rows_.data() + rows_.size() / 2; }

  Index kv_heads_ = 0;
  Index head_dim_ = 0;
  Index row_elements_ = 0;
  Index capacity_ = 0;
  Index tokens_ = 0;
  Buffer<Scalar> rows_;
};

}  // namespace squat::cpu::inline SQUAT_API_NAMESPACE
