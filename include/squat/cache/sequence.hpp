#pragma once

// What the cache knows of one sequence.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "squat/cache/call.hpp"
#include "squat/cache/page_pool.hpp"
#include "squat/cache/tail_rule.hpp"
#include "squat/core/config.hpp"

namespace squat::detail {

/// Where the first tokens of a sequence and layer are.
struct FirstTokens {
  Index sinks = 0;
  std::size_t pages = 0;
  Index last_page_tokens = 0;  // of the last of these pages, which may be cut
  Index tail = 0;
};

/// One sequence's tokens in one layer, in their order: sinks, pages, tail. Exact: the backend's store of
/// sinks and tail.
template <class Exact>
struct LayerTokens {
  static constexpr Index no_coding = -1;  // of what is no sequence's yet, or not any more

  Exact exact;
  std::vector<PageIndex> pages;
  std::vector<PageView> page_views;     // of the same pages
  int layer = 0;                        // of the model
  Index coding = no_coding;             // what its pages are coded with
  Index next_position = 0;              // rotary position of the next token
  bool begins_elsewhere = false;        // its first token is not the sequence's, see continue_at()
  std::optional<PageIndex> ready_page;  // acquired ahead of its tokens, see replay.hpp

  /// Tokens before the tail.
  Index tail_begin() const { return squat::tail_begin(exact.sinks(), page_views); }
  /// Tokens behind the sinks whose pages have left an attention window. They count, and are not there.
  Index left() const { return page_views.empty() ? 0 : page_views.front().before - exact.sinks(); }
  Index paged_tokens() const { return tail_begin() - exact.sinks() - left(); }
  Index length() const { return tail_begin() + exact.tail(); }

  /// Where the first `tokens` of its tokens are.
  FirstTokens first(Index tokens) const {
    FirstTokens kept{.sinks = std::min(tokens, exact.sinks())};
    Index more = tokens - kept.sinks - left();
    while (kept.pages < pages.size() && more > 0) {
      kept.last_page_tokens = std::min(page_views[kept.pages++].tokens, more);
      more -= kept.last_page_tokens;
    }
    kept.tail = std::clamp<Index>(more, 0, exact.tail());
    return kept;
  }

  /// How many of the next `count` tokens become sinks: only a sequence's first
  /// tokens do.
  Index sinks_to_fill(Index count, Index most) const {
    const bool first = pages.empty() && exact.tail() == 0 && !begins_elsewhere;
    return first ? std::min(count, most - exact.sinks()) : 0;
  }

  /// Pages that are due once its next `count` tokens are there. sinks: of a sequence.
  Index due_pages(Index count, Index sinks, const TailRule<> &rule) const {
    return rule.due_pages(exact.tail() + count - sinks_to_fill(count, sinks));
  }

  /// What a backend is told of the layer, its next tokens being `tokens` rows from `first_row` on.
  SequenceCall<Exact> call(Index first_row = 0, Index tokens = 0) {
    SequenceCall<Exact> call;
    call.exact = &exact;
    call.pages = page_views;
    call.coding = coding;
    call.first_row = first_row;
    call.tokens = tokens;
    call.past = length();
    call.position = next_position;
    return call;
  }

  /// Room for `count` more pages.
  void reserve_pages(std::size_t count) {
    const std::size_t wanted = pages.size() + count;
    if (pages.capacity() < wanted) pages.reserve(2 * wanted);
    if (page_views.capacity() < wanted) page_views.reserve(2 * wanted);
  }

  /// A page of `page_tokens` tokens behind the others, the first of which stands at `position`. It
  /// joins the last page's tile where that has room and the two are neighbours.
  /// tile_tokens: rows of a tile, 0 for none.
  PageView page_behind(std::byte *data, Index page_tokens, Index position, Index tile_tokens) const {
    PageView view{.data = data, .tokens = page_tokens, .before = tail_begin()};
    if (tile_tokens > 0) view.base = position;
    if (page_views.empty()) return view;
    const PageView &last = page_views.back();
    const Index row = last.row + page_tokens;
    const bool whole = last.first == 0 && last.tokens == page_tokens;
    if (whole && row + page_tokens <= tile_tokens && last.base + row == position) {
      view.base = last.base;
      view.row = row;
    }
    if (view.base == last.base) view.tile_page = last.tile_page + 1;
    return view;
  }

  /// Keeps the first entries of its table, the last of which may be cut.
  void keep_pages(const FirstTokens &kept) {
    pages.resize(kept.pages);
    page_views.resize(kept.pages);
    if (kept.pages > 0) page_views.back().tokens = kept.last_page_tokens;
  }

  /// Names, being empty, the pages and the coding of the first `tokens` tokens of another, which are
  /// there (`kept`). Allocates.
  void name_tokens(const LayerTokens &from, const FirstTokens &kept, Index tokens) {
    const auto count = static_cast<std::ptrdiff_t>(kept.pages);
    pages.assign(from.pages.begin(), from.pages.begin() + count);
    page_views.assign(from.page_views.begin(), from.page_views.begin() + count);
    keep_pages(kept);
    layer = from.layer;
    coding = from.coding;
    next_position = from.next_position - (from.length() - tokens);
    begins_elsewhere = from.begins_elsewhere;
  }

  /// Swaps all tokens and what they are coded with. The page acquired ahead stays, as does what a
  /// backend's kernels know the sequence by.
  void swap_tokens(LayerTokens &other) {
    exact.swap_tokens(other.exact);
    std::swap(pages, other.pages);
    std::swap(page_views, other.page_views);
    std::swap(layer, other.layer);
    std::swap(coding, other.coding);
    std::swap(next_position, other.next_position);
    std::swap(begins_elsewhere, other.begins_elsewhere);
  }

  void add_page(PageIndex page, const PageView &view) {
    pages.push_back(page);
    page_views.push_back(view);
  }

  /// Counts anew what stands before each page, `before` tokens before the first.
  void count_pages(Index before) {
    for (std::size_t i = 0; i < page_views.size(); ++i) {
      PageView &page = page_views[i];
      page.before = before;
      page.tile_page =
          i > 0 && page_views[i - 1].base == page.base ? page_views[i - 1].tile_page + 1 : 0;
      before += page.tokens;
    }
  }

  /// Pages whose tokens are all before `position`, but never the last: where tokens are counted from.
  std::size_t pages_before(Index position) const {
    const auto end = page_views.empty() ? page_views.end() : page_views.end() - 1;
    const auto begins_behind = [&](const PageView &page) {
      return page.before + page.tokens > position;
    };
    return static_cast<std::size_t>(std::find_if(page_views.begin(), end, begins_behind) -
                                    page_views.begin());
  }
};

template <class Exact>
struct SequenceState {
  std::vector<LayerTokens<Exact>> layers;
  std::uint64_t last_call = 0;  // see NamedOnce
};

}  // namespace squat::detail
