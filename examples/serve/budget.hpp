#pragma once

// The bytes that a cache may take.

#include <algorithm>
#include <cstddef>

#include "engine.hpp"

namespace engine::serve {

/// Pages, the rows beside them and what codings learnt count. For every sequence the rows of a full tail
/// are set aside as soon as it is there, so that only pages are added as it goes on.
class Budget {
 public:
  /// chunk: tokens of a sequence in a step, at most.
  Budget(const ModelCache &cache, std::size_t bytes, std::size_t chunk = 64)
      : cache_(cache), bytes_(bytes), chunk_(static_cast<squat::Index>(chunk)) {}

  std::size_t bytes() const { return bytes_; }

  /// Whether the cache keeps to it with so many sequences, and so many bytes of pages more than it has.
  bool fits(std::size_t sequences, std::size_t more_page_bytes) const {
    const squat::MemoryReport report = cache_.memory_report();
    const std::size_t rows = std::max(report.exact, sequences * row_bytes());
    return report.pages_used + more_page_bytes + rows + learnt(report) <= bytes_;
  }

  /// Bytes that a sequence takes alone.
  std::size_t bytes_of(std::size_t tokens) const {
    return page_bytes_of(tokens) + row_bytes() + learnt(cache_.memory_report());
  }

  /// Of the pages of a sequence, at most: those that a window has passed are given back.
  std::size_t page_bytes_of(std::size_t tokens) const {
    return sum([&](const squat::GroupCache &group) {
      const squat::Options &options = group.options();
      const squat::TailRule<> rule{options.residual, options.page_tokens};
      const squat::Index behind_sinks = static_cast<squat::Index>(tokens) - options.sinks;
      squat::Index pages = rule.due_pages(std::max<squat::Index>(0, behind_sinks));
      if (options.attention_window > 0) {
        // Begun ones at both ends of the window, and of what a step packs before any are given back.
        constexpr squat::Index begun = 4;
        pages =
            std::min(pages, (options.attention_window + options.rollback_tokens) / options.page_tokens +
                                chunk_ / options.page_tokens + begun);
      }
      return static_cast<std::size_t>(pages) * page_bytes_of_each(group);
    });
  }

  /// Of a page of each layer.
  std::size_t page_bytes() const { return sum(page_bytes_of_each); }

 private:
  static std::size_t learnt(const squat::MemoryReport &report) {
    return report.bases + report.statistics;
  }

  template <class Bytes>
  std::size_t sum(Bytes &&bytes_of) const {
    std::size_t sum = 0;
    for (std::size_t group = 0; group < cache_.groups(); ++group) sum += bytes_of(cache_.group(group));
    return sum;
  }

  /// Of a page of each layer of a group.
  static std::size_t page_bytes_of_each(const squat::GroupCache &group) {
    std::size_t sum = 0;
    for (int layer = 0; layer < group.options().layers; ++layer) sum += group.page_bytes(layer);
    return sum;
  }

  /// Of the sinks and the tail of a sequence, at most.
  std::size_t row_bytes() const {
    constexpr int block = 16, scale = 8;  // rows come in blocks, those of bytes with a scale
    return sum([](const squat::GroupCache &group) {
      const squat::Options &options = group.options();
      const int tail = (options.residual + options.page_tokens + block - 1) / block * block;
      const int half_row = 2 * options.head_dim,
                tail_row = options.tail == squat::TailCoding::int8 ? options.head_dim + scale : half_row;
      return 2 * static_cast<std::size_t>(options.layers * options.kv_heads) *
             static_cast<std::size_t>(options.sinks * half_row + tail * tail_row);
    });
  }

  const ModelCache &cache_;
  std::size_t bytes_;
  squat::Index chunk_;
};

}  // namespace engine::serve
