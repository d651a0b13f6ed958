#pragma once

// The table that kernels find a layer's pages by: an entry a page, in order, and one for the page that
// lies ready behind them.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "squat/attention/context.hpp"
#include "squat/config.hpp"
#include "squat/cuda/device_state.cuh"

namespace squat::cuda {

/// before: tokens of the sequence before the page; tile_page: pages of its tile before it.
inline PageEntry page_entry(const PageView &page, Index before, Index tile_page) {
  return {.data = reinterpret_cast<const std::uint8_t *>(page.data),
          .base = page.base,
          .first = static_cast<std::int32_t>(page.first),
          .tokens = static_cast<std::int32_t>(page.tokens),
          .row = static_cast<std::int32_t>(page.row),
          .before = static_cast<std::int32_t>(before),
          .tile_page = static_cast<std::int32_t>(tile_page),
          .unused = 0};
}

/// How many of the last `pages` have that base.
inline Index neighbours(std::span<const PageView> pages, Index base) {
  const auto other = [&](const PageView &page) { return page.base != base; };
  return std::find_if(pages.rbegin(), pages.rend(), other) - pages.rbegin();
}

/// The page that lies ready behind `pages`; it counts nothing while there is none.
inline PageEntry next_entry(std::span<const PageView> pages, const PageView &next, Index before) {
  return page_entry(next, before, neighbours(pages, next.base));
}

/// The entries from that of page `first` on, the one that lies ready included. sinks: exact tokens
/// before the first page.
inline void write_table(std::span<const PageView> pages, const PageView &next, Index sinks,
                        std::size_t first, std::vector<PageEntry> &entries) {
  entries.clear();
  Index before = sinks + paged_tokens(pages.first(first));
  Index tile_page = first == 0 ? 0 : neighbours(pages.first(first), pages[first - 1].base);
  for (std::size_t i = first; i < pages.size(); ++i) {
    if (i > 0 && pages[i - 1].base != pages[i].base) tile_page = 0;
    entries.push_back(page_entry(pages[i], before, tile_page++));
    before += pages[i].tokens;
  }
  entries.push_back(next_entry(pages, next, before));
}

}  // namespace squat::cuda
