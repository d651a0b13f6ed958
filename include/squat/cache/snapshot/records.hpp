#pragma once

// Small records of snapshots, and the pieces in which large sections come and go.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "squat/cache/snapshot/sections.hpp"

namespace squat::detail {

/// Of a sequence in one layer.
struct LayerCounts {
  std::uint64_t sinks;
  std::uint64_t tail;
  std::uint64_t pages;
  std::int64_t next_position;
  std::uint64_t left;  ///< not written where it is 0

  bool operator==(const LayerCounts &) const = default;
};
static_assert(sizeof(LayerCounts) == 40);

/// An entry of a page table.
struct TableRecord {
  std::int64_t base;
  std::int32_t row;
  std::int32_t first;
  std::int32_t tokens;
  std::uint32_t again;

  bool operator==(const TableRecord &) const = default;
};
static_assert(sizeof(TableRecord) == 24);

constexpr std::size_t bytes_of_counts(std::uint64_t left) {
  return sizeof(LayerCounts) - (left == 0 ? sizeof left : 0);
}

inline LayerCounts read_counts_section(SnapshotReader &in, int layer) {
  LayerCounts counts{};
  const std::uint64_t size =
      in.begin(Section::counts, static_cast<std::size_t>(layer), bytes_of_counts(0), bytes_of_counts(1));
  in.read(std::as_writable_bytes(std::span(&counts, 1)).first(static_cast<std::size_t>(size)));
  in.end();
  if (size != bytes_of_counts(counts.left)) throw_damaged(Section::counts, "it is cut");
  return counts;
}

/// Calls run(first, count) for pieces of `count` items, each some 1 MiB or one item.
template <class Run>
void for_each_piece(std::uint64_t count, std::size_t item_bytes, Run &&run) {
  constexpr std::size_t piece_bytes = std::size_t{1} << 20;
  const std::size_t most = std::max<std::size_t>(1, piece_bytes / item_bytes);
  for (std::size_t first = 0; first < count; first += most)
    run(first, std::min<std::size_t>(most, static_cast<std::size_t>(count) - first));
}

}  // namespace squat::detail
