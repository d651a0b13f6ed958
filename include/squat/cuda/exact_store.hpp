#pragma once

// The exact tokens of one sequence and layer in device memory, the table of its pages, and the host's
// mirror of what kernels count.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "squat/attention/context.hpp"
#include "squat/config.hpp"
#include "squat/cuda/device_buffer.hpp"
#include "squat/cuda/device_state.cuh"
#include "squat/cuda/exact_slots.cuh"

namespace squat::cuda {

/// Blocks of 16 tokens that hold `tokens`.
constexpr std::int32_t token_blocks(Index tokens) {
  return static_cast<std::int32_t>((tokens + 15) / 16);
}

class ExactStore;

/// What attention sees of a sequence and layer: all of it is in device memory.
struct DeviceContext {
  const ExactStore *exact = nullptr;
  std::span<const PageView> pages{};
};

/// Exact rows of all KV heads, [kv_heads, sink_blocks + tail_blocks] blocks (BlockLayout). The tail is a
/// ring.
class ExactStore {
 public:
  // What every backend's store offers.

  Index sinks() const { return sinks_; }
  Index tail() const { return tail_; }
  std::size_t bytes() const { return rows_.bytes() + table_.bytes() + state_.bytes(); }
  DeviceContext context(std::span<const PageView> pages) const { return {this, pages}; }

  void truncate(Index sinks, Index tail) {
    sinks_ = static_cast<std::int32_t>(sinks);
    tail_ = static_cast<std::int32_t>(tail);
  }

  /// Tokens that were written behind the others.
  void take(Index sinks, Index tail) {
    sinks_ += static_cast<std::int32_t>(sinks);
    tail_ += static_cast<std::int32_t>(tail);
  }
  void count() { take(0, 1); }
  /// The oldest tokens of the tail went into pages.
  void drop(Index tokens) {
    tail_ -= static_cast<std::int32_t>(tokens);
    if (tail_blocks_ > 0) tail_first_ = static_cast<std::int32_t>((tail_first_ + tokens) % capacity());
  }
  /// Tokens the tail has room for.
  Index room() const { return capacity() - tail_; }
  /// Whether the table is larger than when a step was captured: the graph's workspace is too small then.
  bool outgrown() const { return captured_pages_ > 0 && table_.size() > captured_pages_; }
  void note_capture() { captured_pages_ = table_.size(); }

  // What the operations make of it.

  LayerState *device_state() const { return state_.data(); }
  PageEntry *device_table() const { return table_.data(); }
  std::uint16_t *rows() const { return rows_.data(); }
  bool empty() const { return state_.size() == 0; }
  Index capacity() const { return Index{16} * tail_blocks_; }
  std::int32_t sink_blocks() const { return sink_blocks_; }
  std::int32_t tail_blocks() const { return tail_blocks_; }
  std::int32_t tail_first() const { return tail_first_; }
  std::size_t table_capacity() const { return table_.size(); }
  /// Whether the table in device memory lacks what the host knows.
  bool stale() const { return stale_; }
  void set_stale(bool stale) { stale_ = stale; }

  ExactSlots sink_slots() const {
    return {rows(), sink_blocks_ + tail_blocks_, 0, 16 * sink_blocks_, 0};
  }
  ExactSlots tail_slots() const {
    return {rows(), sink_blocks_ + tail_blocks_, sink_blocks_, 16 * tail_blocks_, tail_first_};
  }

  /// The state as kernels read it, with `pages` pages that hold `paged` tokens.
  LayerState state(std::size_t pages, Index paged, Index coding, Index position) const {
    return {.exact = rows(),
            .pages = table_.data(),
            .position = position,
            .sinks = sinks_,
            .page_count = static_cast<std::int32_t>(pages),
            .paged_tokens = static_cast<std::int32_t>(paged),
            .tail = tail_,
            .tail_first = tail_first_,
            .sink_blocks = sink_blocks_,
            .tail_blocks = tail_blocks_,
            .page_capacity = static_cast<std::int32_t>(table_.size()),
            .coding = static_cast<std::int32_t>(coding)};
  }

  /// Room for a state, and for a table of `pages` pages and the one that lies ready behind them. What
  /// the table holds stays. Waits for the stream where the table moves.
  void reserve_table(std::size_t pages, cudaStream_t stream) {
    if (empty()) {
      DeviceBuffer<LayerState> state(1);
      state.fill(0, stream);
      state_ = std::move(state);
    }
    if (table_.size() > pages) return;
    DeviceBuffer<PageEntry> table(std::max(least_pages, 2 * (pages + 1)));
    table.fill(0, stream);
    if (table_.size() > 0) {
      check(
          cudaMemcpyAsync(table.data(), table_.data(), table_.bytes(), cudaMemcpyDeviceToDevice, stream),
          "page table");
      check(cudaStreamSynchronize(stream), "page table");
    }
    table_ = std::move(table);
    stale_ = true;  // the state in device memory names the old one
  }

  /// Takes new rows, whose tail begins in its first slot, for its own. What they hold is for the caller
  /// to copy.
  void exchange_rows(DeviceBuffer<std::uint16_t> &rows, std::int32_t sink_blocks,
                     std::int32_t tail_blocks) {
    std::swap(rows_, rows);
    sink_blocks_ = sink_blocks;
    tail_blocks_ = tail_blocks;
    tail_first_ = 0;
  }
  /// The tail is written anew from its first slot on.
  void rewind() { tail_first_ = 0; }

 private:
  static constexpr std::size_t least_pages = 64;

  DeviceBuffer<std::uint16_t> rows_;
  DeviceBuffer<PageEntry> table_;
  DeviceBuffer<LayerState> state_;
  std::int32_t sinks_ = 0;
  std::int32_t tail_ = 0;
  std::int32_t tail_first_ = 0;  // slot of the oldest, a multiple of 16
  std::int32_t sink_blocks_ = 0;
  std::int32_t tail_blocks_ = 0;
  bool stale_ = false;
  std::size_t captured_pages_ = 0;  // of the table when a step was captured, 0 before
};

}  // namespace squat::cuda
