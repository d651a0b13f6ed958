#pragma once

// Decode steps that a backend's kernels take on their own, so that captured graphs of them can be
// replayed: the pages they pack into are acquired ahead, and the host counts along.

#include <algorithm>
#include <cstddef>
#include <exception>
#include <span>
#include <type_traits>
#include <vector>

#include "squat/cache/backend.hpp"
#include "squat/cache/call.hpp"
#include "squat/cache/layer_pages.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/sequence.hpp"
#include "squat/cache/tail_rule.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"

namespace squat::detail::inline SQUAT_API_NAMESPACE {

/// For a backend whose kernels do nothing on their own.
template <class Operations>
struct NoReplay {
  explicit NoReplay(const Options &) {}

  void reserve(std::size_t) const {}
  template <class S, class... Arguments>
  bool take_step(Arguments &&...) const {
    return false;
  }
  template <class... Arguments>
  void reserve_shift(Arguments &&...) const {}
  template <class... Arguments>
  void acquire_pages(Arguments &&...) const {}
  template <class... Arguments>
  void release_pages(Arguments &&...) const {}
  template <class... Arguments>
  void publish(Arguments &&...) const {}
  template <class... Arguments>
  void reserve_state(Arguments &&...) const {}
  template <class... Arguments>
  void publish_states(Arguments &&...) const {}
};

/// The host's part of such steps.
template <class Operations>
class Replay {
 public:
  using Exact = typename Operations::Exact;
  using Layer = LayerTokens<Exact>;
  using Layers = std::span<Layer *const>;
  using Pages = LayerPages<typename Operations::Memory, Exact>;

  explicit Replay(const Options &options)
      : rule_{options.residual, options.page_tokens}, sinks_(options.sinks) {}

  /// Room for what is noted of so many layers, so that nothing below fails for lack of it.
  void reserve(std::size_t layers) {
    calls_.reserve(layers);
    taken_.reserve(layers);
  }

  /// Takes the step, for each of `layers` the row of the tensors that `rows` says, where the kernels can
  /// on their own; returns whether it did. learnt: of all their codings. Throws Error where the stream
  /// is being captured and they cannot.
  template <Element S, class Stream>
  bool take_step(Operations &operations, Pages &pages, Layers layers, std::span<const Index> rows,
                 bool learnt, int layer, TensorView<const S> q, TensorView<const S> k,
                 TensorView<const S> v, const AttentionOutput<S> &out, Stream stream) {
    const bool capturing = operations.capturing(stream);
    const auto in_place = [&](Layer *state) { return steps(operations, *state) > 0; };
    if (layers.empty() || !learnt || !std::all_of(layers.begin(), layers.end(), in_place)) {
      if (!capturing) return false;
      throw Error(
          "squat: stream is being captured, and the call is no decode step: one token a sequence, sinks "
          "full, coding learnt, a page acquired ahead");
    }
    bool due = capturing;  // replays meet every step
    calls_.clear();
    for (Layer *state : layers) {
      due |= state->exact.tail() + 1 == rule_.full();
      calls_.push_back(state->call(rows[calls_.size()], 1));
    }
    operations.template step<S>(calls_, layer, due, q, k, v, out, stream);
    if (!capturing) count(operations, pages, layers, 1, stream);
    return true;
  }

  /// Counts `steps` tokens that the kernels appended to each of `layers`, and the pages they packed;
  /// acquires pages anew where they were taken.
  template <class Stream>
  void count(Operations &operations, Pages &pages, Layers layers, Index steps, Stream stream) {
    taken_.clear();
    for (Layer *layer : layers) {
      for (Index step = 0; step < steps; ++step) {
        layer->exact.count();
        ++layer->next_position;
        if (layer->exact.tail() < rule_.full() || !layer->ready_page) continue;
        pages.add_ready(*layer);
        layer->exact.drop(rule_.page_tokens);
      }
      if (!layer->ready_page) taken_.push_back(layer);
    }
    if (!out_of_memory_) acquire_pages(operations, pages, taken_, stream);
  }

  /// Steps from now on that the kernels can take of a layer, once its coding is learnt.
  Index steps(const Operations &operations, const Layer &layer) const {
    const Index tail = layer.exact.tail();
    if (layer.sinks_to_fill(1, sinks_) > 0 || tail >= rule_.full() || !operations.can_step(layer.exact))
      return 0;
    return layer.ready_page ? room(layer) : std::min(layer.exact.room(), rule_.full() - 1 - tail);
  }

  /// Steps that the layer has room for: a tail that can take a page's last token is a page shorter then.
  Index room(const Layer &layer) const {
    const Index room = layer.exact.room();
    const bool packs = layer.ready_page && layer.exact.tail() + room >= rule_.full();
    return room + (packs ? rule_.page_tokens : 0);
  }

  /// Acquires the page that each of `layers` packs next. Where there is none, steps wait for a call that
  /// the host plans. Where memory is refused, which a device takes long to say, nobody asks again before
  /// such a call, which throws where it needs what is missing.
  template <class Stream>
  void acquire_pages(Operations &operations, Pages &pages, Layers layers, Stream stream) {
    calls_.clear();
    out_of_memory_ = false;
    for (Layer *layer : layers) {
      if (layer->ready_page) continue;
      try {
        operations.reserve_pages(layer->exact, layer->pages.size() + 1, stream);
        if (!pages.acquire_ready(*layer)) continue;
      } catch (const std::exception &) {
        out_of_memory_ = true;
        break;
      }
      add(pages, *layer);
    }
    operations.publish_next_page(calls_, stream);
  }

  /// Gives the pages back that `layers` acquired ahead.
  template <class Stream>
  void release_pages(Operations &operations, Pages &pages, Layers layers, Stream stream) {
    for (Layer *layer : layers) pages.release_ready(*layer);
    publish(operations, pages, layers, stream);
  }

  /// Makes what a shift of a layer needs.
  template <class Stream>
  void reserve_shift(Operations &operations, Layer &layer, Stream stream) {
    operations.reserve_pages(layer.exact, layer.pages.size() + 1, stream);
    operations.reserve_shift(layer.exact, stream);
  }

  /// Tells the kernels of layers that changed otherwise than by a call's rows.
  template <class Stream>
  void publish(Operations &operations, const Pages &pages, Layers layers, Stream stream) {
    calls_.clear();
    for (Layer *layer : layers) add(pages, *layer);
    operations.publish(calls_, stream);
  }

  /// Makes what the kernels know a layer by, if it is not there.
  void reserve_state(Operations &operations, Layer &layer) { operations.reserve_state(layer.exact); }

  /// Tells the kernels of layers whose tables they have already: copied, or another's until now.
  template <class Stream>
  void publish_states(Operations &operations, const Pages &pages, Layers layers, Stream stream) {
    calls_.clear();
    for (Layer *layer : layers) add(pages, *layer);
    operations.publish_states(calls_, stream);
  }

 private:
  void add(const Pages &pages, Layer &layer) {
    calls_.push_back(layer.call());
    calls_.back().ready_page = pages.ready_page(layer);
  }

  TailRule<> rule_;
  Index sinks_;
  std::vector<SequenceCall<Exact>> calls_;
  std::vector<Layer *> taken_;  // layers whose page was taken
  bool out_of_memory_ = false;  // when pages were acquired last
};

/// What fits the backend.
template <class Operations, class Stream>
using ReplayOf = std::conditional_t<ReplayableOperations<Operations, Stream>, Replay<Operations>,
                                    NoReplay<Operations>>;

}  // namespace squat::detail::inline SQUAT_API_NAMESPACE
