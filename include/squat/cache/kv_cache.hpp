#pragma once

// The one type an engine calls.

#include <algorithm>
#include <array>
#include <memory>
#include <span>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "squat/cache/backend.hpp"
#include "squat/cache/check.hpp"
#include "squat/cache/memory_report.hpp"
#include "squat/cache/page_pool.hpp"
#include "squat/cache/sequence.hpp"
#include "squat/config.hpp"
#include "squat/cpu/operations.hpp"
#include "squat/error.hpp"
#include "squat/options.hpp"
#include "squat/tensor.hpp"

namespace squat {

/// The widths that pages come in; 16 is exact.
constexpr bool supported_bits(int bits) {
  return bits == 2 || bits == 3 || bits == 4 || bits == 8 || bits == 16;
}

/// The keys and values of every past token of a set of sequences, packed to
/// KeyBits and ValueBits bits.
///
/// The first `sinks` tokens of a sequence and at least its newest `window`
/// tokens stay exact, as T. Each time `window + group` tokens behind the sinks
/// are exact, the oldest `group` of them become a page. Codings that learn from
/// queries begin to pack when a layer has seen `statistics_tokens` tokens (and
/// at least what fills the first page); exactly that many count, so pages do
/// not depend on the pieces in which tokens arrive.
///
/// T: float, half or bfloat16. Bits: 2, 3, 4 or 8; 16 keeps exact half-precision
/// pages, the baseline.
///
/// Tensors are `[tokens, heads, head_dim]` in float, half or bfloat16, whatever
/// T is. A batched call takes several sequences, their rows one after another,
/// each sequence once. Errors are `squat::Error`, name the argument and the
/// limit, and leave the cache as it was. One thread at a time may call a cache.
template <Element T, int KeyBits, int ValueBits = KeyBits, class Backend = Cpu>
class KVCache {
  static_assert(supported_bits(KeyBits) && supported_bits(ValueBits),
                "squat: KeyBits and ValueBits are 2, 3, 4, 8 or 16");
  using Operations = typename Backend::template Operations<T, KeyBits, ValueBits>;
  static_assert(BackendOperations<Operations, T>,
                "squat: the backend does not offer what BackendOperations asks for");

  // A call's element type follows from its first tensor; the others may be
  // views of const or mutable elements.
  template <class S>
  using In = TensorView<const std::remove_const_t<S>>;
  template <class S>
  using Out = TensorView<std::remove_const_t<S>>;
  using Batch = std::span<const SequenceTokens>;

 public:
  explicit KVCache(const Options &options)
      : options_(detail::resolve(options, KeyBits)),
        operations_(options_),
        pool_(operations_.page_bytes(), options_.max_pages) {
    if (options_.basis_per_sequence) return;
    for (int layer = 0; layer < options_.layers; ++layer) add_coding(layer);
  }

  /// The options in force, defaults filled in.
  const Options &options() const { return options_; }

  SequenceId add_sequence() {
    auto state = std::make_unique<Sequence>();
    state->layers.resize(static_cast<std::size_t>(options_.layers));
    for (int layer = 0; layer < options_.layers; ++layer) {
      state->layers[static_cast<std::size_t>(layer)].coding =
          options_.basis_per_sequence ? add_coding(layer) : Index{layer};
    }
    sequences_.emplace(next_id_, std::move(state));
    return {next_id_++};
  }

  void remove_sequence(SequenceId sequence) {
    for (Layer &layer : find(sequence).layers) {
      release_pages(layer, 0);
      if (options_.basis_per_sequence) remove_coding(layer.coding);
    }
    sequences_.erase(sequence.value);
  }

  /// Appends k and v and attends: each query sees every token before its own,
  /// and its own. Tokens of one call see each other exact; what leaves the
  /// window is packed afterwards. q, out: [tokens, query_heads, head_dim]; k,
  /// v: [tokens, kv_heads, head_dim]; tokens: of the whole batch.
  template <class S>
  void attend(Batch batch, int layer, TensorView<S> q, std::type_identity_t<In<S>> k,
              std::type_identity_t<In<S>> v, std::type_identity_t<Out<S>> out) {
    check_batch(batch, layer, q.tokens);
    check_tensor<S>("q", q, q.tokens, options_.query_heads);
    check_tensor<S>("k", k, q.tokens, options_.kv_heads);
    check_tensor<S>("v", v, q.tokens, options_.kv_heads);
    detail::check_shape("out", out, q.tokens, options_.query_heads, options_.head_dim);
    plan(batch, layer);
    observe<S>(q, k);
    operations_.template attend<std::remove_const_t<S>>(jobs_, q, k, v, out);
    commit<S>(k, v);
  }

  /// Attends without appending. The queries of a sequence stand at its last
  /// positions: query i of n sees the first length - n + i + 1 tokens, as after
  /// append() of the same n tokens.
  template <class S>
  void attend(Batch batch, int layer, TensorView<S> q, std::type_identity_t<Out<S>> out) {
    check_batch(batch, layer, q.tokens);
    check_tensor<S>("q", q, q.tokens, options_.query_heads);
    detail::check_shape("out", out, q.tokens, options_.query_heads, options_.head_dim);
    jobs_.clear();
    Index row = 0;
    for (const SequenceTokens &entry : batch) {
      const Layer &tokens = find(entry.sequence, layer);
      const Index length = tokens.length();
      if (entry.tokens > length) {
        throw_invalid("batch.tokens", entry.tokens, "at most the length of the sequence, which is",
                      length);
      }
      jobs_.push_back({tokens.context(), tokens.coding, row, entry.tokens, length - entry.tokens});
      row += entry.tokens;
    }
    operations_.template attend<std::remove_const_t<S>>(jobs_, q, {}, {}, out);
  }

  /// Appends k and v without attention.
  template <class S>
  void append(Batch batch, int layer, TensorView<S> k, std::type_identity_t<In<S>> v) {
    append_checked<S>(batch, layer, {}, k, v);
  }

  /// The same for tokens whose attention the engine computes itself: codings
  /// learn from their queries q.
  template <class S>
  void append(Batch batch, int layer, TensorView<S> q, std::type_identity_t<In<S>> k,
              std::type_identity_t<In<S>> v) {
    check_tensor<S>("q", q, k.tokens, options_.query_heads);
    append_checked<S>(batch, layer, q, k, v);
  }

  // The one-sequence forms: every row belongs to `sequence`.

  template <class S>
  void attend(SequenceId sequence, int layer, TensorView<S> q, std::type_identity_t<In<S>> k,
              std::type_identity_t<In<S>> v, std::type_identity_t<Out<S>> out) {
    const std::array batch{SequenceTokens{sequence, q.tokens}};
    attend(Batch(batch), layer, q, k, v, out);
  }

  template <class S>
  void attend(SequenceId sequence, int layer, TensorView<S> q, std::type_identity_t<Out<S>> out) {
    const std::array batch{SequenceTokens{sequence, q.tokens}};
    attend(Batch(batch), layer, q, out);
  }

  template <class S>
  void append(SequenceId sequence, int layer, TensorView<S> k, std::type_identity_t<In<S>> v) {
    const std::array batch{SequenceTokens{sequence, k.tokens}};
    append(Batch(batch), layer, k, v);
  }

  template <class S>
  void append(SequenceId sequence, int layer, TensorView<S> q, std::type_identity_t<In<S>> k,
              std::type_identity_t<In<S>> v) {
    const std::array batch{SequenceTokens{sequence, q.tokens}};
    append(Batch(batch), layer, q, k, v);
  }

  /// Writes all tokens of a sequence and layer as attention sees them: exact
  /// rows as they are, packed ones as their codes say. k, v: [length(sequence,
  /// layer), kv_heads, head_dim].
  template <Element S>
  void dequantize(SequenceId sequence, int layer, TensorView<S> k,
                  std::type_identity_t<TensorView<S>> v) {
    check_layer(layer);
    const Layer &tokens = find(sequence, layer);
    detail::check_shape("k", k, tokens.length(), options_.kv_heads, options_.head_dim);
    detail::check_shape("v", v, tokens.length(), options_.kv_heads, options_.head_dim);
    operations_.dequantize(tokens.coding, tokens.context(), k, v);
  }

  /// Keeps the first `tokens` tokens of a sequence in every layer. A page cut
  /// in two stays packed.
  void truncate(SequenceId sequence, Index tokens) {
    Sequence &state = find(sequence);
    const Index most = length(sequence);
    if (tokens < 0 || tokens > most)
      throw_invalid("tokens", tokens, "0 to the length of the sequence,", most);
    for (Layer &layer : state.layers) truncate_layer(layer, tokens);
  }

  /// Drops the tokens [first, last) of a sequence in every layer and moves what
  /// follows by `by` positions, as engines do to make room in a full context:
  /// shift(sequence, keep, keep + n, -n). Packed tokens are not coded anew:
  /// their pages change the position they are turned back by. Exact ones are
  /// turned. The engine's next token stands `by` positions from where it would
  /// have stood. by other than 0 needs Options::rotary.
  void shift(SequenceId sequence, Index first, Index last, Index by) {
    Sequence &state = find(sequence);
    const Index most = length(sequence);
    constexpr Index farthest = Index{1} << 32;
    if (last < 0 || last > most) throw_invalid("last", last, "0 to the length of the sequence,", most);
    detail::check_range("first", first, 0, last);
    detail::check_range("by", by, -farthest, farthest);
    if (by != 0 && options_.rotary.empty()) throw_invalid("by", by, "0 without a rotary table");
    for (Layer &layer : state.layers) layer.reserve_pages(1);
    for (Layer &layer : state.layers) {
      const Index sinks = layer.sinks.tokens(), paged = layer.paged_tokens();
      shift_rows(layer, layer.sinks, first, last, by);
      shift_pages(layer, first - sinks, last - sinks, by);
      shift_rows(layer, layer.tail, first - sinks - paged, last - sinks - paged, by);
      layer.next_position += by;
    }
  }

  /// The statistics of queries and keys that codings have learnt from, to be
  /// another cache's Options::prior; those of its own prior are part of them.
  /// Throws Error where they are gone: without Options::keep_statistics they
  /// are dropped once a coding is learnt.
  Prior statistics() const {
    Prior prior(options_.layers, options_.kv_heads, options_.head_dim, std::max(1, *options_.frame));
    const auto add = [&](Index coding) {
      if (observed(coding) > 0 && !operations_.add_statistics(coding, prior)) {
        throw_invalid("keep_statistics", false, "true to read statistics that codings have learnt from");
      }
    };
    if (options_.basis_per_sequence) {
      for (const auto &[id, sequence] : sequences_) {
        for (const Layer &layer : sequence->layers) add(layer.coding);
      }
    } else {
      for (int layer = 0; layer < options_.layers; ++layer) add(layer);
    }
    return prior;
  }

  /// Tokens present in every layer.
  Index length(SequenceId sequence) const {
    const auto &layers = find(sequence).layers;
    Index least = layers.front().length();
    for (const Layer &layer : layers) least = std::min(least, layer.length());
    return least;
  }

  /// Tokens present in one layer.
  Index length(SequenceId sequence, int layer) const {
    check_layer(layer);
    return find(sequence, layer).length();
  }

  MemoryReport memory_report() const {
    MemoryReport report;
    report.pages = pool_.bytes();
    report.pages_used = pool_.used_bytes();
    report.statistics = operations_.statistics_bytes();
    report.bases = operations_.bases_bytes();
    report.workspace = operations_.workspace_bytes();
    for (const auto &[id, sequence] : sequences_) {
      for (const Layer &layer : sequence->layers) {
        report.exact += layer.sinks.bytes() + layer.tail.bytes();
        report.exact_tokens += layer.sinks.tokens() + layer.tail.tokens();
        report.packed_tokens += layer.paged_tokens();
      }
    }
    const double elements = 2.0 * options_.kv_heads * options_.head_dim;  // of a token and layer
    report.packed_bits_per_element =
        8.0 * static_cast<double>(operations_.page_bytes()) / (elements * options_.group);
    const Index tokens = report.packed_tokens + report.exact_tokens;
    if (tokens > 0) {
      const auto bytes =
          static_cast<double>(report.pages_used + report.exact + report.statistics + report.bases);
      report.total_bits_per_element = 8.0 * bytes / (elements * static_cast<double>(tokens));
    }
    return report;
  }

 private:
  using Rows = typename Operations::Rows;
  using Layer = LayerTokens<Rows>;
  using Sequence = SequenceState<Rows>;

  /// What one entry of a batch will do to its sequence.
  struct Append {
    Layer *layer = nullptr;
    Index first = 0;  // row of the call's tensors
    Index tokens = 0;
    Index past = 0;   // tokens before them
    Index sinks = 0;  // tokens that become sinks
    Index pages = 0;  // pages that become due
    bool learnt = false;
    Rows new_tail{};  // with room, where the tail has to move
  };

  // ---- checks
  // -----------------------------------------------------------------------------------------------

  void check_layer(int layer) const { detail::check_range("layer", layer, 0, options_.layers - 1); }

  /// Every sequence known and named once, and their tokens together `rows`.
  void check_batch(Batch batch, int layer, Index rows) {
    check_layer(layer);
    ++call_;
    Index sum = 0;
    for (const SequenceTokens &entry : batch) {
      Sequence &sequence = find(entry.sequence);
      if (std::exchange(sequence.last_call, call_) == call_) {
        throw_invalid("batch.sequence", entry.sequence.value, "named once in a batch");
      }
      if (entry.tokens < 1 || entry.tokens > rows - sum) {
        throw_invalid("batch.tokens", entry.tokens,
                      "at least 1 and at most the rows left in the tensors,", rows - sum);
      }
      sum += entry.tokens;
    }
    if (sum != rows) throw_invalid("tokens", rows, "the tokens of the batch together,", sum);
  }

  template <class S>
  void check_tensor(const char *name, In<S> tensor, Index tokens, Index heads) const {
    static_assert(Element<std::remove_const_t<S>>, "squat: tensors are float, half or bfloat16");
    detail::check_shape(name, tensor, tokens, heads, options_.head_dim);
    detail::check_elements(name, tensor);
  }

  Sequence &find(SequenceId sequence) const {
    const auto found = sequences_.find(sequence.value);
    if (found == sequences_.end())
      throw_invalid("sequence", sequence.value, "one that was added and not removed");
    return *found->second;
  }

  Layer &find(SequenceId sequence, int layer) const {
    return find(sequence).layers[static_cast<std::size_t>(layer)];
  }

  // ---- appending
  // --------------------------------------------------------------------------------------------

  template <class S>
  void append_checked(Batch batch, int layer, In<S> q, In<S> k, In<S> v) {
    check_batch(batch, layer, k.tokens);
    check_tensor<S>("k", k, k.tokens, options_.kv_heads);
    check_tensor<S>("v", v, k.tokens, options_.kv_heads);
    plan(batch, layer);
    observe<S>(q, k);
    commit<S>(k, v);
  }

  Index add_coding(int layer) {
    const Index coding = operations_.add_coding(layer);
    if (static_cast<std::size_t>(coding) == observed_.size()) observed_.push_back(0);
    return coding;
  }

  void remove_coding(Index coding) {
    operations_.remove_coding(coding);
    observed(coding) = 0;
  }

  /// Tokens a coding has to see before it packs.
  Index tokens_to_learn() const {
    if (KeyBits == 16 || !KeyQuantizer::learns(*options_.coding)) return 0;
    const Index first_page = options_.sinks + options_.window + options_.group;
    return options_.prior ? first_page : std::max<Index>(options_.statistics_tokens, first_page);
  }

  Index &observed(Index coding) { return observed_[static_cast<std::size_t>(coding)]; }
  Index observed(Index coding) const { return observed_[static_cast<std::size_t>(coding)]; }

  /// Decides what an append will do, and allocates all that it needs. Throws
  /// before anything changes.
  void plan(Batch batch, int layer) {
    appends_.clear();
    jobs_.clear();
    Index row = 0, pages = 0, tokens = 0;
    for (const SequenceTokens &entry : batch) tokens += entry.tokens;
    for (const SequenceTokens &entry : batch) {
      Layer &state = find(entry.sequence, layer);
      Append append{.layer = &state, .first = row, .tokens = entry.tokens, .past = state.length()};
      append.sinks = state.sinks_to_fill(entry.tokens, options_.sinks);
      const Index exact = state.tail.tokens() + entry.tokens - append.sinks;
      const Index seen = observed(state.coding) + (options_.basis_per_sequence ? entry.tokens : tokens);
      append.learnt = seen >= tokens_to_learn();
      if (append.learnt && exact >= options_.window + options_.group) {
        append.pages = (exact - options_.window) / options_.group;
      }
      jobs_.push_back({state.context(), state.coding, row, entry.tokens, append.past});
      row += entry.tokens;
      pages += append.pages;
      appends_.push_back(std::move(append));
    }
    pool_.reserve(static_cast<std::size_t>(pages));
    operations_.reserve_pack(pages);
    for (Append &append : appends_) make_room(append);
  }

  void make_room(Append &append) {
    Layer &layer = *append.layer;
    if (layer.sinks.capacity() < options_.sinks) layer.sinks = operations_.make_rows(options_.sinks);
    const Index usual = options_.window + options_.group;
    const Index rest =
        layer.tail.tokens() + append.tokens - append.sinks - append.pages * options_.group;
    if (append.learnt ? layer.tail.capacity() != usual : layer.tail.capacity() < rest) {
      append.new_tail = operations_.make_rows(
          append.learnt ? usual : std::max({usual, rest, 2 * layer.tail.capacity()}));
    }
    layer.reserve_pages(static_cast<std::size_t>(append.pages));
    jobs_[static_cast<std::size_t>(&append - appends_.data())].context = layer.context();
  }

  /// Adds what the plan's tokens bring to the statistics that are still wanted,
  /// and learns from them when complete.
  template <class S>
  void observe(In<S> q, In<S> k) {
    for (const Append &append : appends_) {
      const Index coding = append.layer->coding, position = append.layer->next_position;
      const auto add = [&](Index first, Index count) {
        operations_.template observe<std::remove_const_t<S>>(coding, q, k, append.first + first, count,
                                                             append.past + first, position + first);
        observed(coding) += count;
      };
      const Index wanted = std::clamp<Index>(tokens_to_learn() - observed(coding), 0, append.tokens);
      if (wanted > 0) {
        add(0, wanted);
        if (observed(coding) == tokens_to_learn()) operations_.learn(coding);
      }
      const Index more = append.tokens - wanted;
      if (more > 0 && q.tokens > 0 && options_.keep_statistics) add(wanted, more);
    }
  }

  /// Carries the plan out.
  template <class S>
  void commit(In<S> k, In<S> v) {
    for (Append &append : appends_) {
      Layer &state = *append.layer;
      state.sinks.append(k, v, append.first, append.sinks);
      const Index first = append.first + append.sinks;
      const Index position = state.next_position + append.sinks - state.tail.tokens();
      for (Index page = 0; page < append.pages; ++page) {
        const PageIndex index = pool_.acquire();
        state.add_page(index, pool_.data(index), options_.group, position + page * options_.group,
                       KeyBits == 16 ? 0 : *options_.frame);
      }
      const auto new_pages =
          std::span<const PageView>(state.page_views).last(static_cast<std::size_t>(append.pages));
      operations_.template pack<std::remove_const_t<S>>(state.coding, new_pages, state.tail.view(), k, v,
                                                        first);
      const Index packed = append.pages * options_.group;
      const Index from_tail = std::min(packed, state.tail.tokens());
      if (append.new_tail.capacity() > 0) {
        state.tail.move_to(std::move(append.new_tail), from_tail);
      } else {
        state.tail.erase(0, from_tail);
      }
      const Index from_call = packed - from_tail;
      state.tail.append(k, v, first + from_call, append.tokens - append.sinks - from_call);
      state.next_position += append.tokens;
    }
  }

  // ---- truncation
  // -------------------------------------------------------------------------------------------

  void truncate_layer(Layer &layer, Index tokens) {
    layer.next_position -= layer.length() - tokens;
    layer.sinks.truncate(tokens);
    Index left = tokens - layer.sinks.tokens();
    std::size_t kept = 0;
    while (kept < layer.pages.size() && left > 0) {
      PageView &page = layer.page_views[kept++];
      page.tokens = std::min(page.tokens, left);
      left -= page.tokens;
    }
    release_pages(layer, kept);
    layer.tail.truncate(left);
  }

  // Both take first and last from their own first token on, so that either may lie outside.

  void shift_rows(Layer &layer, Rows &rows, Index first, Index last, Index by) {
    first = std::clamp<Index>(first, 0, rows.tokens());
    last = std::clamp<Index>(last, 0, rows.tokens());
    rows.erase(first, last - first);
    if (by != 0) operations_.turn(layer.coding, rows, first, by);
  }

  /// What lies before `first` stays, what lies behind `last` changes its base. At most one page is cut
  /// in two, for which reserve_pages(1) has made room.
  void shift_pages(Layer &layer, Index first, Index last, Index by) {
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

  /// Releases all pages but the first `kept`.
  void release_pages(Layer &layer, std::size_t kept) {
    for (std::size_t page = kept; page < layer.pages.size(); ++page) pool_.release(layer.pages[page]);
    layer.pages.resize(kept);
    layer.page_views.resize(kept);
  }

  Options options_;
  Operations operations_;
  PagePool<typename Operations::Memory> pool_;
  std::unordered_map<std::uint64_t, std::unique_ptr<Sequence>> sequences_;
  std::vector<Index> observed_;  // tokens a coding has learnt from
  std::uint64_t next_id_ = 1;
  std::uint64_t call_ = 0;
  std::vector<Append> appends_;  // of the call in progress
  std::vector<SequenceJob<T>> jobs_;
};

}  // namespace squat
