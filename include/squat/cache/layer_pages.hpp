#pragma once

// How pages come to sequences and leave them.

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>

#include "squat/attention/context.hpp"
#include "squat/cache/append_plan.hpp"
#include "squat/cache/page_pool.hpp"
#include "squat/cache/sequence.hpp"
#include "squat/config.hpp"
#include "squat/options.hpp"

namespace squat {

/// The pages of all sequences and layers. LaysReady: a page is acquired ahead for every layer whose
/// coding is there, for a backend that packs on its own.
template <class Operations, bool LaysReady>
class LayerPages {
 public:
  using Plan = AppendPlan<Operations>;
  using Layer = typename Plan::Layer;

  /// frame: rows of a tile, 0 for none.
  LayerPages(const Options &options, std::size_t page_bytes, Index frame)
      : pool_(page_bytes, options.max_pages),
        page_bytes_(page_bytes),
        group_(options.page_tokens),
        frame_(frame) {}

  std::size_t bytes() const { return pool_.bytes(); }
  /// Of pages that hold tokens.
  std::size_t used_bytes() const { return pool_.used_bytes() - ready_ * page_bytes_; }

  bool try_reserve(Index pages) { return pool_.try_reserve(static_cast<std::size_t>(pages)); }

  /// Makes sure of all pages of a plan. Throws Error where the limit is passed.
  void reserve(Plan &plan) {
    pool_.reserve(static_cast<std::size_t>(plan.new_pages()));
    for (std::size_t i = 0; i < plan.layers().size(); ++i) {
      Layer &layer = *plan.layers()[i];
      layer.reserve_pages(static_cast<std::size_t>(plan.appends()[i].due) + LaysReady);
      plan.appends()[i].layer.pages = layer.page_views;
    }
  }

  /// Adds the pages that a plan's tokens make due.
  void add(Plan &plan) {
    for (std::size_t i = 0; i < plan.layers().size(); ++i) {
      Layer &layer = *plan.layers()[i];
      auto &append = plan.appends()[i];
      Index first = layer.next_position + append.sinks - layer.exact.tail();  // of the tail
      layer.next_position = append.layer.position;
      for (Index page = 0; page < append.due; ++page, first += group_) add(layer, first);
      if (append.learnt) lay_ready(layer);
      append.layer.pages = layer.page_views;
      append.layer.next = ready_page(layer, first);
    }
  }

  // ---- pages laid ready

  /// What the cache knows of a layer, no call being in progress.
  auto view(Layer &layer) const {
    return LayerView<typename Operations::Exact>{
        .exact = &layer.exact,
        .pages = layer.page_views,
        .next = ready_page(layer, layer.next_position - layer.exact.tail()),
        .coding = layer.coding,
        .position = layer.next_position};
  }

  /// Acquires the page that will be packed next, where there is one.
  void lay_ready(Layer &layer) {
    if (!LaysReady || layer.next_page || !pool_.try_reserve(1)) return;
    layer.reserve_pages(1);
    layer.next_page = pool_.acquire();
    ++ready_;
  }

  void release_ready(Layer &layer) {
    if (layer.next_page) pool_.release(take_ready(layer));
  }

  /// Counts a token that the backend appended, and the page of `full` tokens' oldest that it then
  /// packed.
  void count_step(Layer &layer, Index full) {
    layer.exact.count();
    ++layer.next_position;
    if (layer.exact.tail() < full || !layer.next_page) return;
    add(layer, layer.next_position - layer.exact.tail());
    layer.exact.drop(group_);
  }

  // ---- pages leave

  /// Releases all pages but the first `kept`.
  void release(Layer &layer, std::size_t kept) {
    for (std::size_t page = kept; page < layer.pages.size(); ++page) pool_.release(layer.pages[page]);
    layer.pages.resize(kept);
    layer.page_views.resize(kept);
  }

  /// Keeps the first `tokens` tokens of a layer.
  void truncate(Layer &layer, Index tokens) {
    layer.next_position -= layer.length() - tokens;
    const Index sinks = std::min(tokens, layer.exact.sinks());
    Index left = tokens - sinks;
    std::size_t kept = 0;
    while (kept < layer.pages.size() && left > 0) {
      PageView &page = layer.page_views[kept++];
      page.tokens = std::min(page.tokens, left);
      left -= page.tokens;
    }
    release(layer, kept);
    layer.exact.truncate(sinks, std::min(left, layer.exact.tail()));
  }

  /// Drops the paged tokens [first, last), which count from the first page on and may lie outside. What
  /// lies before stays, what lies behind changes its base. At most one page is cut in two, for which
  /// Layer::reserve_pages(1) has made room.
  void shift(Layer &layer, Index first, Index last, Index by) {
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
        pool_.retain(layer.pages[page]);
        layer.pages.insert(layer.pages.begin() + at, layer.pages[page]);
        layer.page_views[page] = left;
        layer.page_views.insert(layer.page_views.begin() + at + 1, right);
        page += 2;
      } else if (left.tokens > 0 || right.tokens > 0) {
        layer.page_views[page++] = left.tokens > 0 ? left : right;
      } else {
        pool_.release(layer.pages[page]);
        layer.pages.erase(layer.pages.begin() + at);
        layer.page_views.erase(layer.page_views.begin() + at);
      }
    }
  }

 private:
  PageIndex take_ready(Layer &layer) {
    --ready_;
    return *std::exchange(layer.next_page, std::nullopt);
  }

  void add(Layer &layer, Index position) {
    const PageIndex page = layer.next_page ? take_ready(layer) : pool_.acquire();
    layer.add_page(page, layer.page_behind(pool_.data(page), group_, position, frame_));
  }

  /// The page laid ready, its first token at `position`.
  PageView ready_page(const Layer &layer, Index position) const {
    if (!layer.next_page) return {};
    return layer.page_behind(pool_.data(*layer.next_page), group_, position, frame_);
  }

  PagePool<typename Operations::Memory> pool_;
  std::size_t page_bytes_;
  std::size_t ready_ = 0;  // pages laid ready
  Index group_;
  Index frame_;
};

}  // namespace squat
