#pragma once

// What the cache knows of one sequence.

#include <algorithm>
#include <compare>
#include <cstdint>
#include <optional>
#include <vector>

#include "squat/attention/context.hpp"
#include "squat/cache/page_pool.hpp"
#include "squat/config.hpp"

namespace squat {

/// Names a sequence of a cache. Never used again after remove_sequence().
struct SequenceId {
  std::uint64_t value = 0;
  auto operator<=>(const SequenceId &) const = default;
};

/// One sequence's share of a batched call: `tokens` rows of the call's tensors, which may be none.
struct SequenceTokens {
  static constexpr Index behind_the_last = -1;

  SequenceId sequence;
  Index tokens = 0;
  /// Where they begin; default: where the rows of the entry before end. Entries name rows in their
  /// order. As soon as one of them says where it begins, rows that no entry names are padding: they
  /// are neither read nor written.
  Index first_row = behind_the_last;
};

/// One sequence's tokens in one layer, in their order: sinks, pages, tail. Exact: the backend's store of
/// sinks and tail.
template <class Exact>
struct LayerTokens {
  Exact exact;
  std::vector<PageIndex> pages;
  std::vector<PageView> page_views;    // of the same pages
  Index coding = 0;                    // what its pages are coded with
  Index next_position = 0;             // rotary position of the next token
  std::optional<PageIndex> next_page;  // laid ready for a backend that takes steps on its own

  Index paged_tokens() const { return squat::paged_tokens(page_views); }
  Index length() const { return exact.sinks() + paged_tokens() + exact.tail(); }
  auto context() const { return exact.context(page_views); }

  /// How many of the next `count` tokens become sinks: only a sequence's first
  /// tokens do.
  Index sinks_to_fill(Index count, Index most) const {
    return pages.empty() && exact.tail() == 0 ? std::min(count, most - exact.sinks()) : 0;
  }

  /// Room for `count` more pages.
  void reserve_pages(std::size_t count) {
    const std::size_t wanted = pages.size() + count;
    if (pages.capacity() < wanted) pages.reserve(2 * wanted);
    if (page_views.capacity() < wanted) page_views.reserve(2 * wanted);
  }

  /// A page of `group` tokens behind the others, the first of which stands at `position`. It
  /// joins the last page's tile where that has room and the two are neighbours.
  /// frame: rows of a tile, 0 for none.
  PageView page_behind(std::byte *data, Index group, Index position, Index frame) const {
    PageView view{.data = data, .first = 0, .tokens = group};
    if (frame == 0) return view;
    view.base = position;
    if (page_views.empty()) return view;
    const PageView &last = page_views.back();
    const Index row = last.row + group;
    const bool whole = last.first == 0 && last.tokens == group;
    if (whole && row + group <= frame && last.base + row == position) {
      view.base = last.base;
      view.row = row;
    }
    return view;
  }

  void add_page(PageIndex page, const PageView &view) {
    pages.push_back(page);
    page_views.push_back(view);
  }
};

template <class Exact>
struct SequenceState {
  std::vector<LayerTokens<Exact>> layers;
  std::uint64_t last_call = 0;  // the batched call that named it last
};

}  // namespace squat
