#pragma once

// The exact tokens of one sequence and layer, the table of its pages and the state that kernels find
// both by: their device memory, and what the host counts of them.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "squat/cache/call.hpp"
#include "squat/core/config.hpp"
#include "squat/cuda/error.hpp"
#include "squat/cuda/state/copy_each.cuh"
#include "squat/cuda/state/device_arena.hpp"
#include "squat/cuda/state/device_buffer.hpp"
#include "squat/cuda/state/device_state.cuh"
#include "squat/cuda/state/exact_slots.cuh"

namespace squat::cuda {

static_assert(sizeof(PageEntry) % sizeof(uint2) == 0, "squat: tables are copied in these pieces");

inline PageEntry page_entry(const PageView &page) {
  return {.data = reinterpret_cast<const std::uint8_t *>(page.data),
          .base = page.base,
          .first = static_cast<std::int32_t>(page.first),
          .tokens = static_cast<std::int32_t>(page.tokens),
          .row = static_cast<std::int32_t>(page.row),
          .before = static_cast<std::int32_t>(page.before),
          .tile_page = static_cast<std::int32_t>(page.tile_page),
          .unused = 0};
}

/// What the rows of every sequence and layer have in common.
struct ExactShape {
  std::int32_t sink_blocks;         ///< of 16 tokens
  std::int32_t full_blocks;         ///< of a tail when a page is due
  std::size_t block_elements;       ///< 16-bit elements of a block of sinks, all KV heads
  std::size_t tail_block_elements;  ///< likewise of the tail
  bool byte_tail;                   ///< see LayerState

  std::size_t elements(std::int32_t tail_blocks) const {
    return static_cast<std::size_t>(sink_blocks) * block_elements + tail_elements(tail_blocks);
  }
  std::size_t tail_elements(std::int32_t tail_blocks) const {
    return static_cast<std::size_t>(tail_blocks) * tail_block_elements;
  }
};

/// Rows of all KV heads, [sink_blocks + tail_blocks] blocks. The tail is a ring. What a call needs
/// is made by the reserve functions and taken into use by the adopt functions, so that a call that fails
/// between the two changes nothing.
class ExactStore {
 public:
  // What every backend's store offers.

  Index sinks() const { return sinks_; }
  Index tail() const { return tail_; }
  std::size_t bytes() const { return rows_.bytes() + table_.bytes() + state_.bytes(); }
  void truncate(Index sinks, Index tail) {
    sinks_ = static_cast<std::int32_t>(sinks);
    tail_ = static_cast<std::int32_t>(tail);
  }

  /// The state stays, for captured steps name it; they find other tokens there once it is written anew.
  void swap_tokens(ExactStore &other) {
    for (ExactStore *store : {this, &other}) {
      store->next_rows_ = {};
      store->next_table_ = {};
    }
    std::swap(rows_, other.rows_);
    std::swap(table_, other.table_);
    std::swap(sinks_, other.sinks_);
    std::swap(tail_, other.tail_);
    std::swap(tail_first_, other.tail_first_);
    std::swap(tail_blocks_, other.tail_blocks_);
  }

  // What steps are counted by.

  void count() { take(0, 1); }
  /// The oldest tokens of the tail went into pages.
  void drop(Index tokens) {
    tail_ -= static_cast<std::int32_t>(tokens);
    tail_first_ = static_cast<std::int32_t>((tail_first_ + tokens) % capacity());
  }
  /// Tokens the tail has room for.
  Index room() const { return capacity() - tail_; }
  /// Whether the table is larger than when a step was captured: the graph's workspace is too small then.
  bool outgrown() const { return captured_pages_ > 0 && table_.size() > captured_pages_; }
  void note_capture() { captured_pages_ = table_.size(); }

  // What the operations make of it.

  /// Tokens that were written behind the others.
  void take(Index sinks, Index tail) {
    sinks_ += static_cast<std::int32_t>(sinks);
    tail_ += static_cast<std::int32_t>(tail);
  }

  LayerState *device_state() const { return state_.data(); }
  PageEntry *device_table() const { return table_.data(); }
  /// Whether there are no rows and no table. There may be a state, of tokens that were swapped away.
  bool empty() const { return rows_.size() == 0; }
  Index capacity() const { return Index{16} * tail_blocks_; }
  /// Entries of the table, used or not, once adopt() has been called.
  std::size_t table_capacity() const { return std::max(table_.size(), next_table_.size()); }
  const std::uint16_t *rows() const { return rows_.data(); }
  std::size_t row_elements() const { return rows_.size(); }

  /// Makes rows for a tail of `tokens` tokens, unless those there are will do, and a state. A short
  /// sequence takes the blocks it needs, unless it wants a `whole` tail; others a tail of which a page
  /// is due, exactly once the coding is there (`learnt`).
  void reserve_rows(const ExactShape &shape, Index tokens, bool whole, bool learnt, DeviceArena &arena) {
    constexpr std::int32_t few = 4;
    reserve_state(arena);
    const std::int32_t needed = std::max(1, token_blocks(tokens));
    next_tail_blocks_ = tail_blocks_;
    if (learnt && tail_blocks_ > shape.full_blocks) {
      next_tail_blocks_ = shape.full_blocks;
    } else if (needed > tail_blocks_) {
      const bool is_short = !whole && needed <= few && needed < shape.full_blocks;
      next_tail_blocks_ = is_short ? needed
                          : learnt ? shape.full_blocks
                                   : std::max({shape.full_blocks, needed, 2 * tail_blocks_});
    }
    next_rows_ = {};
    if (next_tail_blocks_ == tail_blocks_) return;
    next_rows_ = ArenaPiece<std::uint16_t>(arena, shape.elements(next_tail_blocks_));
  }

  /// Makes a state, unless there is one.
  void reserve_state(DeviceArena &arena) {
    if (state_.size() == 0 && next_state_.size() == 0) next_state_ = ArenaPiece<LayerState>(arena, 1);
  }

  /// Blocks of the tail once adopt() has been called.
  std::int32_t next_tail_blocks() const { return next_tail_blocks_; }

  /// Makes a table for `pages` pages and the one that is acquired ahead, unless there is one.
  void reserve_table(std::size_t pages, DeviceArena &arena) {
    if (table_capacity() <= pages) {
      next_table_ = ArenaPiece<PageEntry>(arena, std::max(least_pages, 2 * (pages + 1)));
    }
  }

  /// Makes, being empty, rows for the first tokens of another and a table for `pages` of its pages: as
  /// large as there, so that sequences of one origin outgrow captured steps together.
  void reserve_copy(const ExactStore &from, const ExactShape &shape, Index sinks, Index tail,
                    std::size_t pages, DeviceArena &arena) {
    if (sinks + tail == 0 && pages == 0) return;
    reserve_rows(shape, tail, pages > 0, false, arena);
    next_table_ = ArenaPiece<PageEntry>(arena, std::max(from.table_.size(), pages + 1));
  }

  /// Becomes those tokens, once `copies` are made, and the first `pages` entries of the table.
  void adopt_copy(const ExactStore &from, const ExactShape &shape, Index sinks, Index tail,
                  std::size_t pages, std::vector<PieceCopy> &copies) {
    if (next_rows_.size() == 0) return;  // no tokens
    rows_ = std::exchange(next_rows_, {});
    table_ = std::exchange(next_table_, {});
    tail_blocks_ = next_tail_blocks_;
    tail_first_ = 0;
    truncate(sinks, tail);
    const auto add = [&](const auto *source, auto *target, std::size_t count) {
      if (count == 0) return;
      copies.push_back({reinterpret_cast<const uint2 *>(source), reinterpret_cast<uint2 *>(target),
                        count * sizeof(*target) / sizeof(uint2)});
    };
    // The tail in its order, of a ring that begins at tail_first_: at most two runs of blocks.
    const std::int32_t first = from.tail_first_ / 16, blocks = token_blocks(tail),
                       run = std::min(blocks, from.tail_blocks_ - first);
    std::uint16_t *to = rows_.data() + shape.elements(0);
    const std::uint16_t *ring = from.rows_.data() + shape.elements(0);
    add(from.rows_.data(), rows_.data(), shape.elements(0));
    add(ring + shape.tail_elements(first), to, shape.tail_elements(run));
    add(ring, to + shape.tail_elements(run), shape.tail_elements(blocks - run));
    add(static_cast<const std::uint16_t *>(nullptr), to + shape.tail_elements(blocks),
        shape.tail_elements(tail_blocks_ - blocks));
    add(from.table_.data(), table_.data(), pages);
  }

  /// Takes a state that was reserved into use.
  void adopt_state() {
    if (next_state_.size() > 0) state_ = std::exchange(next_state_, {});
  }

  /// Takes a table that was reserved into use. Returns whether there was one: the state names it then.
  bool adopt_table(cudaStream_t stream) {
    if (next_table_.size() == 0) return false;
    copy(table_.data(), next_table_.data(), table_.size(), stream);
    table_ = std::exchange(next_table_, {});
    return true;
  }

  /// Takes all that was reserved into use. `overflow` takes the tokens for which a smaller tail has no
  /// slot.
  void adopt(const ExactShape &shape, std::uint16_t *overflow, cudaStream_t stream) {
    adopt_state();
    adopt_table(stream);
    if (next_rows_.size() == 0) return;
    // Zeros: what lies behind the last token of a block is multiplied by 0, and must be finite.
    check(cudaMemsetAsync(next_rows_.data(), 0, next_rows_.bytes(), stream), "exact rows");
    const std::int32_t filled = token_blocks(tail_), kept = std::min(filled, next_tail_blocks_);
    if (rows_.size() > 0) {
      // No page was packed yet, so that the tail begins in its first slot.
      copy(rows_.data(), next_rows_.data(), shape.elements(kept), stream);
      copy(rows_.data() + shape.elements(kept), overflow, shape.tail_elements(filled - kept), stream);
    }
    rows_ = std::exchange(next_rows_, {});
    tail_blocks_ = next_tail_blocks_;
    tail_first_ = 0;
  }

  ExactSlots sink_slots(const ExactShape &shape, int kv_heads) const {
    return {rows_.data(), nullptr, kv_heads, 16 * shape.sink_blocks, 0};
  }
  template <class Slots>
  Slots tail_slots(const ExactShape &shape, int kv_heads) const {
    return {reinterpret_cast<decltype(Slots::ring)>(rows_.data() + shape.elements(0)), nullptr, kv_heads,
            16 * tail_blocks_, tail_first_};
  }

  /// The state as kernels read it.
  LayerState state(const SequenceCall<ExactStore> &call, const ExactShape &shape) const {
    return {.exact = rows_.data(),
            .overflow = nullptr,
            .pages = table_.data(),
            .position = call.position,
            .sinks = sinks_,
            .page_count = static_cast<std::int32_t>(call.pages.size()),
            .paged_tokens = static_cast<std::int32_t>(tail_begin(sinks_, call.pages) - sinks_),
            .tail = tail_,
            .tail_first = tail_first_,
            .sink_blocks = shape.sink_blocks,
            .tail_blocks = tail_blocks_,
            .page_capacity = static_cast<std::int32_t>(table_.size()),
            .coding = static_cast<std::int32_t>(call.coding),
            .byte_tail = shape.byte_tail ? 1 : 0};
  }

 private:
  static constexpr std::size_t least_pages = 64;

  template <class Scalar>
  static void copy(const Scalar *from, Scalar *to, std::size_t count, cudaStream_t stream) {
    if (count == 0) return;
    check(cudaMemcpyAsync(to, from, count * sizeof(Scalar), cudaMemcpyDeviceToDevice, stream),
          "exact rows");
  }

  ArenaPiece<std::uint16_t> rows_, next_rows_;
  ArenaPiece<PageEntry> table_, next_table_;
  ArenaPiece<LayerState> state_, next_state_;
  std::int32_t sinks_ = 0;
  std::int32_t tail_ = 0;
  std::int32_t tail_first_ = 0;  // slot of the oldest, a multiple of 16
  std::int32_t tail_blocks_ = 0, next_tail_blocks_ = 0;
  std::size_t captured_pages_ = 0;  // of the table when a step was captured, 0 before
};

}  // namespace squat::cuda
