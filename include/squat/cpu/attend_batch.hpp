#pragma once

// How the attention of a batch is cut into items that tasks can take: by
// sequence, block of tokens and KV head, and, while there are few query rows, by
// run of pages, so that one long sequence keeps every thread busy too.

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "squat/cache/call.hpp"
#include "squat/core/config.hpp"

namespace squat::cpu {

/// Query rows up to which a block is cut into runs.
inline constexpr Index few_rows = 32;

/// Call: a SequenceCall.
template <class Call>
class AttendBatch {
 public:
  static constexpr Index most_rows = 128;  ///< query rows of a block

  /// Pages of a run; the last has up to half as many more or fewer. It is fixed, so that
  /// results do not depend on how many tasks share the work.
  static constexpr Index run_pages = 32;

  /// A block of tokens of one sequence and KV head.
  struct Block {
    const Call *call;
    Index head;
    Index first;
    Index tokens;
  };

  /// A block's attention to a run of pages: to the sinks too with the first page,
  /// to the tail with the last. Where a block has several, each leaves its partial
  /// results from `partial_row` on, else it has all of the output.
  struct Item {
    Block block;
    Index first_page;
    Index last_page;
    Index partial_row;  // or -1
  };

  /// A block whose partial results lie in `runs` times its rows.
  struct Merge {
    Block block;
    Index partial_row;
    Index runs;
  };

  /// Cuts the calls; heads: query heads of a KV head. What was there is forgotten,
  /// its memory kept.
  void cut(std::span<const Call> calls, Index kv_heads, Index heads) {
    items_.clear();
    merges_.clear();
    rows_ = partial_rows_ = 0;
    few_row_counts_ = 0;
    const Index block_tokens = std::max<Index>(1, most_rows / heads);
    for (const Call &call : calls) {
      for (Index first = 0; first < call.tokens; first += block_tokens) {
        const Index tokens = std::min(block_tokens, call.tokens - first);
        rows_ = std::max(rows_, tokens * heads);
        if (tokens * heads <= few_rows) few_row_counts_ |= std::uint64_t{1} << (tokens * heads);
        for (Index head = 0; head < kv_heads; ++head) add({&call, head, first, tokens}, tokens * heads);
      }
    }
  }

  Index items() const { return static_cast<Index>(items_.size()); }
  const Item &item(Index index) const { return items_[static_cast<std::size_t>(index)]; }
  Index merges() const { return static_cast<Index>(merges_.size()); }
  const Merge &merge(Index index) const { return merges_[static_cast<std::size_t>(index)]; }

  /// The largest of what `bytes(rows)` says for the rows of blocks. It rises with rows beyond few_rows;
  /// up to there, fewer rows may ask for more.
  template <class Bytes>
  std::size_t most_bytes(Bytes &&bytes) const {
    std::size_t most = rows_ > 0 ? bytes(rows_) : 0;
    for (std::uint64_t left = few_row_counts_; left != 0; left &= left - 1)
      most = std::max(most, bytes(Index{std::countr_zero(left)}));
    return most;
  }
  Index partial_rows() const { return partial_rows_; }

 private:
  void add(const Block &block, Index rows) {
    const auto pages = static_cast<Index>(block.call->pages.size());
    const Index runs = rows <= few_rows ? std::max<Index>(1, (pages + run_pages / 2) / run_pages) : 1;
    for (Index run = 0; run < runs; ++run) {
      const Index last = run + 1 == runs ? pages : (run + 1) * run_pages;
      items_.push_back({block, run * run_pages, last, runs == 1 ? -1 : partial_rows_ + run * rows});
    }
    if (runs == 1) return;
    merges_.push_back({block, partial_rows_, runs});
    partial_rows_ += runs * rows;
  }

  std::vector<Item> items_;
  std::vector<Merge> merges_;
  Index rows_ = 0;                    // of the largest block
  std::uint64_t few_row_counts_ = 0;  // bit n: a block has n rows, up to few_rows
  Index partial_rows_ = 0;
};

}  // namespace squat::cpu
