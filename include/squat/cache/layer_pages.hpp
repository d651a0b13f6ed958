#pragma once

// How pages come to sequences and leave them.

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>

#include "squat/cache/append_plan.hpp"
#include "squat/cache/call.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/page_pool.hpp"
#include "squat/cache/pools_by_size.hpp"
#include "squat/cache/sequence.hpp"
#include "squat/core/config.hpp"

namespace squat::detail {

/// Pages that a sequence holds in a layer, each counted once.
struct HeldPages {
  std::size_t all = 0;
  std::size_t alone = 0;  // no other sequence holds them
};

/// The pages of all sequences and layers. Memory, Exact: the backend's.
template <class Memory, class Exact>
class LayerPages {
 public:
  using Layer = LayerTokens<Exact>;

  /// tile_tokens: rows of a tile, 0 for none.
  LayerPages(const Options &options, Index tile_tokens)
      : pools_(options.max_pages, options.page_budget,
               *options.allocation == Allocation::model ? SlabSize::growing : SlabSize::whole),
        page_tokens_(options.page_tokens),
        tile_tokens_(tile_tokens) {}

  std::size_t bytes() const { return pools_.bytes(); }
  /// Pages that hold tokens.
  std::size_t used() const { return pools_.used() - ready_; }
  std::size_t used_bytes() const { return pools_.used_bytes() - ready_bytes_; }
  /// Pages that may still hold tokens: those acquired ahead are given back where others need them.
  std::size_t free() const { return pools_.free() + ready_; }

  /// What a layer holds. A page that a shift has cut stands in its table more than once, in neighbouring
  /// entries.
  HeldPages held(const Layer &layer) const {
    const auto &pages = layer.pages;
    HeldPages held;
    for (auto page = pages.begin(); page != pages.end();) {
      const auto next = std::find_if(page, pages.end(), [&](PageIndex other) { return other != *page; });
      ++held.all;
      held.alone += pool(layer).references(*page) == next - page;
      page = next;
    }
    return held;
  }

  /// What pages of a coding have from now on, none of which is there.
  void set_page_bytes(Index coding, std::size_t bytes) { pools_.set_page_bytes(coding, bytes); }
  std::size_t page_bytes(const Layer &layer) const { return pool(layer).page_bytes(); }

  // ---- pages come

  /// Makes sure of all pages of a plan, if that needs no others to be given back. Returns whether it
  /// does not.
  bool try_reserve(const AppendPlan<Exact> &plan) {
    return pools_.try_reserve([&](auto &&visit) { plan.for_each_new_page(visit); });
  }
  /// The same, and of entries for them. Throws Error where the limit is passed.
  void reserve(AppendPlan<Exact> &plan) {
    pools_.reserve([&](auto &&visit) { plan.for_each_new_page(visit); });
    for (std::size_t i = 0; i < plan.layers().size(); ++i) {
      Layer &layer = *plan.layers()[i];
      layer.reserve_pages(static_cast<std::size_t>(plan.calls()[i].due));
      plan.calls()[i].pages = layer.page_views;
    }
  }

  /// Adds the pages that a plan's tokens make due, of the codings that its calls name, and counts the
  /// tokens' positions.
  void add(AppendPlan<Exact> &plan) {
    for (std::size_t i = 0; i < plan.layers().size(); ++i) {
      Layer &layer = *plan.layers()[i];
      auto &call = plan.calls()[i];
      Index first = call.position + call.sinks - layer.exact.tail();  // position of the tail's first
      for (Index page = 0; page < call.due; ++page, first += page_tokens_) {
        add(layer, call.coding, first, layer.exact.sinks() + call.sinks);
      }
      call.due_pages = std::span(layer.page_views).last(static_cast<std::size_t>(call.due));
      if (layer.ready_page) {
        call.ready_page =
            view_behind(layer, call.coding, *layer.ready_page, first, layer.exact.sinks() + call.sinks);
      }
      layer.next_position += call.tokens;
    }
  }

  /// Undoes that, where none of the pages was acquired ahead.
  void take_back(const AppendPlan<Exact> &plan) {
    for (std::size_t i = plan.layers().size(); i-- > 0;) {
      Layer &layer = *plan.layers()[i];
      const auto &call = plan.calls()[i];
      for (Index page = 0; page < call.due; ++page) {
        pools_.of(call.coding).release(layer.pages.back());
        layer.pages.pop_back();
        layer.page_views.pop_back();
      }
      layer.next_position -= call.tokens;
    }
  }

  /// Adds a page with the facts of `view`, or the last page once more (`again`), where reserve() made
  /// sure of it and Layer::reserve_pages() of its entry. Returns the entry.
  const PageView &restore(Layer &layer, PageView view, bool again) {
    if (again) pool(layer).retain(layer.pages.back());
    const PageIndex page = again ? layer.pages.back() : pool(layer).acquire();
    view.data = pool(layer).data(page);
    layer.add_page(page, view);
    return layer.page_views.back();
  }
  /// Makes sure of pages for restore(). Throws Error where the limit is passed.
  void reserve(const Layer &layer, std::size_t pages) { pools_.reserve(of(layer, pages)); }
  bool try_reserve(const Layer &layer, std::size_t pages) {
    return pools_.try_reserve(of(layer, pages));
  }

  /// The memory that there is, and back to it: pages beyond it must be free.
  using Mark = typename PoolsBySize<Memory>::Mark;
  Mark mark() const { return pools_.mark(); }
  void back_to(const Mark &mark) { pools_.back_to(mark); }

  // ---- pages acquired ahead

  /// Acquires the page that will be packed next, of a layer that has none. Returns whether it is there.
  bool acquire_ready(Layer &layer) {
    if (!try_reserve(layer, 1)) return false;
    layer.reserve_pages(1);
    layer.ready_page = pool(layer).acquire();
    ++ready_;
    ready_bytes_ += pool(layer).page_bytes();
    return true;
  }

  void release_ready(Layer &layer) {
    if (layer.ready_page) pool(layer).release(take_ready(layer));
  }

  /// That page as it will be packed; without data where there is none.
  PageView ready_page(const Layer &layer) const {
    if (!layer.ready_page) return {};
    return view_behind(layer, layer.coding, *layer.ready_page, tail_position(layer),
                       layer.exact.sinks());
  }

  /// Takes it in, its tokens being the tail's oldest.
  void add_ready(Layer &layer) { add(layer, layer.coding, tail_position(layer), layer.exact.sinks()); }

  // ---- pages are shared

  /// A layer's table names pages that others hold, and holds them too from now on.
  void retain(const Layer &layer) {
    for (const PageIndex page : layer.pages) pool(layer).retain(page);
  }

  // ---- pages leave

  /// Releases all pages of a layer.
  void release(Layer &layer) { release_behind(layer, {}); }

  /// Keeps the first `tokens` tokens of a layer.
  void truncate(Layer &layer, Index tokens) {
    const FirstTokens kept = layer.first(tokens);
    layer.next_position -= layer.length() - tokens;
    release_behind(layer, kept);
    layer.exact.truncate(kept.sinks, kept.tail);
  }

  /// Releases the pages whose tokens are all before `position`, but the last. Returns whether there were
  /// any.
  bool leave_before(Layer &layer, Index position) {
    const std::size_t count = layer.pages_before(position);
    if (count == 0) return false;
    for (std::size_t page = 0; page < count; ++page) pool(layer).release(layer.pages[page]);
    const auto leaving = static_cast<std::ptrdiff_t>(count);
    layer.pages.erase(layer.pages.begin(), layer.pages.begin() + leaving);
    layer.page_views.erase(layer.page_views.begin(), layer.page_views.begin() + leaving);
    layer.count_pages(layer.page_views.front().before);
    return true;
  }

  /// Drops the paged tokens [first, last), which count from the first page on and may lie outside. What
  /// lies before stays, what lies behind changes its base. At most one page is cut in two, for which
  /// Layer::reserve_pages(1) has made room. before: tokens that are left before the pages.
  void shift(Layer &layer, Index first, Index last, Index by, Index before) {
    Index begin = 0;  // of the page, in tokens
    for (std::size_t page = 0; page < layer.pages.size();) {
      PageView left = layer.page_views[page], right = left;
      const Index end = begin + left.tokens, cut = std::clamp(last, begin, end);
      left.tokens = std::clamp(first, begin, end) - begin;
      right.first += cut - begin;
      right.tokens = end - cut;
      right.base += by;
      begin = end;
      const auto at = static_cast<std::ptrdiff_t>(page);
      if (left.tokens > 0 && right.tokens > 0) {
        pool(layer).retain(layer.pages[page]);
        layer.pages.insert(layer.pages.begin() + at, layer.pages[page]);
        layer.page_views[page] = left;
        layer.page_views.insert(layer.page_views.begin() + at + 1, right);
        page += 2;
      } else if (left.tokens > 0 || right.tokens > 0) {
        layer.page_views[page++] = left.tokens > 0 ? left : right;
      } else {
        pool(layer).release(layer.pages[page]);
        layer.pages.erase(layer.pages.begin() + at);
        layer.page_views.erase(layer.page_views.begin() + at);
      }
    }
    layer.count_pages(before);
  }

 private:
  /// Releases the pages behind those that are kept.
  void release_behind(Layer &layer, const FirstTokens &kept) {
    for (std::size_t page = kept.pages; page < layer.pages.size(); ++page)
      pool(layer).release(layer.pages[page]);
    layer.keep_pages(kept);
  }

  PagePool<Memory> &pool(const Layer &layer) { return pools_.of(layer.coding); }
  const PagePool<Memory> &pool(const Layer &layer) const { return pools_.of(layer.coding); }

  static auto of(const Layer &layer, std::size_t pages) {
    return [coding = layer.coding, pages](auto &&visit) { visit(coding, pages); };
  }

  PageIndex take_ready(Layer &layer) {
    --ready_;
    ready_bytes_ -= pool(layer).page_bytes();
    return *std::exchange(layer.ready_page, std::nullopt);
  }

  /// Position of the tail's first token.
  static Index tail_position(const Layer &layer) { return layer.next_position - layer.exact.tail(); }

  /// A page behind the layer's, its first token at `position`. sinks: before the first page, for the
  /// backend may not have counted them yet.
  PageView view_behind(const Layer &layer, Index coding, PageIndex page, Index position,
                       Index sinks) const {
    PageView view =
        layer.page_behind(pools_.of(coding).data(page), page_tokens_, position, tile_tokens_);
    if (layer.page_views.empty()) view.before = sinks;
    return view;
  }

  void add(Layer &layer, Index coding, Index position, Index sinks) {
    const PageIndex page = layer.ready_page ? take_ready(layer) : pools_.of(coding).acquire();
    layer.add_page(page, view_behind(layer, coding, page, position, sinks));
  }

  PoolsBySize<Memory> pools_;
  std::size_t ready_ = 0;  // pages acquired ahead
  std::size_t ready_bytes_ = 0;
  Index page_tokens_;
  Index tile_tokens_;
};

}  // namespace squat::detail
