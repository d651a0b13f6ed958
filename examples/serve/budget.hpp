#pragma once

// The bytes that a cache may take.

#include <algorithm>
#include <cstddef>

#include "cache.hpp"

namespace engine::serve {

/// Pages, the rows beside them and what codings learnt count. For every sequence the rows of a full tail
/// are set aside as soon as it is there, so that only pages are added as it goes on.
class Budget {
 public:
  Budget(const Cache &cache, std::size_t bytes) : cache_(cache), bytes_(bytes) {}

  std::size_t bytes() const { return bytes_; }

  /// Whether the cache keeps to it with so many sequences, and so many pages more than it has.
  bool fits(std::size_t sequences, std::size_t more_pages) const {
    const squat::MemoryReport report = cache_.memory_report();
    const std::size_t rows = std::max(report.exact, sequences * row_bytes());
    return report.pages_used + more_pages * page_bytes() + rows + learnt(report) <= bytes_;
  }

  /// Bytes that a sequence takes alone.
  std::size_t bytes_of(std::size_t tokens) const {
    return pages_of(tokens) * page_bytes() + row_bytes() + learnt(cache_.memory_report());
  }

  /// Pages of a sequence, of all layers.
  std::size_t pages_of(std::size_t tokens) const {
    const squat::Options &options = cache_.options();
    const squat::TailRule<> rule{options.residual, options.page_tokens};
    const auto count = static_cast<squat::Index>(tokens);
    return pages_of_layers() *
           static_cast<std::size_t>(rule.due_pages(std::max<squat::Index>(0, count - options.sinks)));
  }

  /// A page of each layer.
  std::size_t pages_of_layers() const { return static_cast<std::size_t>(cache_.options().layers); }

 private:
  static std::size_t learnt(const squat::MemoryReport &report) {
    return report.bases + report.statistics;
  }

  /// Of a page of any layer.
  std::size_t page_bytes() const {
    std::size_t sum = 0;
    for (int layer = 0; layer < cache_.options().layers; ++layer) sum += cache_.page_bytes(layer);
    return (sum + pages_of_layers() - 1) / pages_of_layers();
  }

  /// Of the sinks and the tail of a sequence, at most.
  std::size_t row_bytes() const {
    const squat::Options &options = cache_.options();
    constexpr int block = 16, scale = 8;  // rows come in blocks, those of bytes with a scale
    const int tail = (options.residual + options.page_tokens + block - 1) / block * block;
    const int half_row = 2 * options.head_dim,
              tail_row = options.tail == squat::TailCoding::int8 ? options.head_dim + scale : half_row;
    return 2 * pages_of_layers() * static_cast<std::size_t>(options.kv_heads) *
           static_cast<std::size_t>(options.sinks * half_row + tail * tail_row);
  }

  const Cache &cache_;
  std::size_t bytes_;
};

}  // namespace engine::serve
