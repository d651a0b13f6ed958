#pragma once

// The CPU backend: the operations KVCache calls, see cache/backend.hpp for what
// each must do.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "squat/cache/call.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/snapshot/check_numbers.hpp"
#include "squat/cache/snapshot/check_record.hpp"
#include "squat/coding/bit_shares.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/coding/evidence.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/prior.hpp"
#include "squat/core/element_range.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cpu/attend_batch.hpp"
#include "squat/cpu/buffer.hpp"
#include "squat/cpu/exact_store.hpp"
#include "squat/cpu/head_coding.hpp"
#include "squat/cpu/kernels/attend_head.hpp"
#include "squat/cpu/kernels/bend_scores.hpp"
#include "squat/cpu/kernels/check_elements.hpp"
#include "squat/cpu/kernels/pack_page.hpp"
#include "squat/cpu/kernels/stored_row.hpp"
#include "squat/cpu/kernels/unpack_page.hpp"
#include "squat/cpu/layer_coding.hpp"
#include "squat/cpu/padding.hpp"
#include "squat/cpu/page_layout.hpp"
#include "squat/cpu/page_memory.hpp"
#include "squat/cpu/page_record.hpp"
#include "squat/cpu/partial_results.hpp"
#include "squat/cpu/stored_rows.hpp"
#include "squat/cpu/stream.hpp"
#include "squat/cpu/workspace.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

template <class T>
class Operations {
 public:
  using Exact = ExactStore<T>;
  using Call = SequenceCall<Exact>;
  using Memory = PageMemory;
  using Padding = cpu::Padding;
  static constexpr int padded_head_dim(int head_dim) { return cpu::padded_head_dim(head_dim); }

  /// kernels: for pages of those widths.
  Operations(const Options &options, int key_bits, int value_bits, const CodeKernels &kernels)
      : options_(options),
        layout_(options, key_bits, value_bits),
        kernels_(kernels),
        workspace_(options.parallel) {
    for (const RotaryTable &table : options.rotary) {
      if (*options.tile_tokens > 0)
        tiles_.push_back(std::make_unique<TileTables>(table, *options.tile_tokens, options.head_dim));
    }
  }

  std::size_t page_bytes(Index coding) const {
    if (coding < 0) return layout_.page_bytes();
    return layout_.codes_begin() + layer_coding(coding).code_bytes();
  }

  template <Element S>
  void check_elements(std::initializer_list<NamedTensor<S>> tensors, Stream) const {
    for (const auto &[name, view, first] : tensors) cpu::check_elements(name, view, first);
  }

  /// Room for what a layer learns; what it returns names it.
  Index add_coding(int layer) {
    const TileTables *tiles = tiles_.empty() ? nullptr : of_layer(tiles_, layer).get();
    auto coding = std::make_unique<LayerCoding>(options_, layout_, layer, tiles);
    const auto empty = std::find(codings_.begin(), codings_.end(), nullptr);
    if (empty == codings_.end()) {
      codings_.push_back(std::move(coding));
      return static_cast<Index>(codings_.size()) - 1;
    }
    *empty = std::move(coding);
    return empty - codings_.begin();
  }

  void remove_coding(Index coding) { codings_[static_cast<std::size_t>(coding)].reset(); }

  /// Whether observe() allocates and takes the engine's threads.
  bool observe_may_fail(Index tokens) const {
    return LayerCoding::weighs_attention(options_) ||
           tokens * heads_per_kv_head() > squat::detail::few_rows;
  }
  /// Adds `count` tokens of a call, from its token `first` on, to the statistics of its coding.
  template <Element S>
  void observe(const Call &call, TensorView<const S> q, TensorView<const S> k, TensorView<const S> v,
               Index first, Index count, Stream) {
    layer_coding(call.coding).begin_to_observe();
    const auto observe_head = [&](Index head, Scratch scratch) {
      layer_coding(call.coding)
          .observe(head, heads_per_kv_head(), call, q, k, v, first, count, options_.prior.get(),
                   scratch);
    };
    if (observe_may_fail(count)) return for_each_kv_head(observe_bytes(), observe_head);
    workspace_.for_each_here(options_.kv_heads, observe_head);
  }

  /// Fixes a coding from its statistics; from the prior where nothing was observed. Returns false where
  /// they are of no text: it begins anew.
  bool learn(Index coding, Stream) {
    LayerCoding &layer = layer_coding(coding);
    layer.reserve_statistics(options_.head_dim, options_.prior.get());
    const QueryWeighting weighting = layer.weighting();
    std::vector<Evidence> evidence(static_cast<std::size_t>(options_.kv_heads));
    for_each_kv_head(0, [&](Index head, Scratch) {
      evidence[static_cast<std::size_t>(head)] = layer.learn(head, weighting);
    });
    if (!is_of_text(evidence, options_.keys_have_biases && layer.layer() == 0)) {
      layer.forget();
      return false;
    }
    layer.finish_learning(weighting, options_.keep_statistics);
    if (*options_.allocation == Allocation::model) {
      share_among_layers();
    } else {
      layer.share(shares(layer.choices(), layout_.code_bytes()), layout_.code_bytes());
      layer.drop_choices();
    }
    return true;
  }

  /// A coding is fixed, nothing learnt.
  void learn_nothing(Index coding, Stream) { layer_coding(coding).learn_nothing(); }
  /// It is what it was when it was added.
  void forget(Index coding, Stream) {
    layer_coding(coding).forget();
    if (*options_.allocation == Allocation::model) share_no_more();
  }

  /// Adds what a coding's statistics hold to `prior`. Returns whether they are
  /// still there.
  bool add_statistics(Index coding, Prior &prior) const {
    const LayerCoding &from = layer_coding(coding);
    for (Index head = 0; head < options_.kv_heads; ++head) {
      const QueryStatistics *statistics = from.statistics(head);
      if (statistics == nullptr) return false;
      prior.head(from.layer(), head).merge(*statistics);
    }
    return true;
  }

  /// What a coding knew.
  using Backup = LayerCoding::Backup;
  Backup back_up(Index coding, Stream) const { return layer_coding(coding).back_up(); }
  void restore(Index coding, Backup backup) {
    LayerCoding &layer = layer_coding(coding);
    layer.restore(std::move(backup));
    if (!layer.learnt() && *options_.allocation == Allocation::model) share_no_more();
  }

  /// Makes all memory that append() needs, and observe() unless it may fail.
  void reserve(std::span<const Call> calls, bool attends, Stream) {
    Index pages = 0;
    for (const Call &call : calls) {
      pages += call.due;
      call.exact->reserve(options_, call);
      if (!call.observed) continue;
      layer_coding(call.coding).reserve_statistics(options_.head_dim, options_.prior.get());
      reserve_kv_heads(observe_bytes());
    }
    workspace_.reserve(pages * options_.kv_heads, pack_bytes());
    if (const auto items = static_cast<std::size_t>(pages * options_.kv_heads);
        coded_keys_.size() < items)
      coded_keys_.resize(items);
    if (const std::size_t elements = to_basis_elements() * static_cast<std::size_t>(options_.kv_heads);
        pages > 0 && to_bases_.size() < elements)
      to_bases_ = Buffer<float>(elements);
    if (attends) reserve_attend(calls);
  }

  /// Attends to what is cached and to the call's own rows, unless there are no
  /// queries to answer; packs what became due, and then keeps the rest exact. The engine's threads work
  /// before that: where they throw, rows are where they were.
  template <Element S>
  void append(std::span<const Call> calls, TensorView<const S> q, TensorView<const S> k,
              TensorView<const S> v, AttentionOutput<S> out, Stream) {
    if (out.rows.tokens > 0) attend_reserved(q, k, v, out);
    Index entered = -1;
    for (const Call &call : calls) {
      if (call.due == 0) continue;
      if (entered != call.coding) make_to_bases(entered = call.coding);
      call.exact->visit_tail([&](const auto &tail) {
        pack(call.coding, call.due_pages, tail, k, v, call.first_row + call.sinks);
      });
    }
    for (const Call &call : calls) call.exact->append(call, k, v, call.due * options_.page_tokens);
  }

  /// Attends to what is cached.
  template <Element S>
  void attend(std::span<const Call> calls, TensorView<const S> q, AttentionOutput<S> out, Stream) {
    for (const Call &call : calls) {
      cpu::check_elements("q", q.slice(call.first_row, call.tokens), call.first_row);
    }
    reserve_attend(calls);
    attend_reserved<S>(q, {}, {}, out);
  }

  /// Attends to what is cached and to the paths of the call's own rows.
  template <Element S>
  void draft(std::span<const Call> calls, TensorView<const S> q, TensorView<const S> k,
             TensorView<const S> v, AttentionOutput<S> out, Stream) {
    reserve_attend(calls);
    attend_reserved<S>(q, k, v, out);
  }

  /// Exact tokens without those of `sinks` and `tail`, and what follows them
  /// turned by `by` positions.
  void shift(Index coding, Exact &exact, TokenRange sinks, TokenRange tail, Index by, Stream) const {
    if (by == 0) return exact.shift(sinks, tail, nullptr);
    const Turn turn(*head_coding(coding, 0).rotary, by);
    exact.shift(sinks, tail, &turn);
  }

  /// Makes memory in empty stores for the first tokens of others.
  void reserve_copies(std::span<const ExactCopy<Exact>> copies) {
    for (const ExactCopy<Exact> &copy : copies) {
      copy.to->reserve_copy(*copy.from, copy.sinks, copy.tail);
    }
    workspace_.reserve(static_cast<Index>(copies.size()), 0);
  }

  /// Fills them.
  void copy(std::span<const ExactCopy<Exact>> copies, Stream) {
    workspace_.for_each(static_cast<Index>(copies.size()), [&](Index item, Scratch) {
      const ExactCopy<Exact> &copy = copies[static_cast<std::size_t>(item)];
      copy.to->copy(*copy.from, copy.sinks, copy.tail);
    });
  }

  /// Makes the matrices by which the keys of a coding go into their bases.
  void make_to_bases(Index coding) {
    workspace_.for_each(options_.kv_heads, [&](Index head, Scratch scratch) {
      layer_coding(coding).transform(head).write_to_basis(to_basis(head),
                                                          scratch.take<Index>(options_.head_dim));
    });
  }

  /// Packs consecutive groups of tokens into `pages`, after make_to_bases(). Tokens come from the tail
  /// first, then from the rows of k and v from `first` on, rounded as the
  /// tail would have. Where heads share the bits of a page, all of them are coded in the basis, or
  /// plainly where that suits their keys together better: never worse than plain.
  template <Element S, RowElement Kept>
  void pack(Index coding, std::span<const PageView> pages, const StoredRows<Kept> &tail,
            TensorView<const S> k, TensorView<const S> v, Index first) {
    const Index d = options_.head_dim, group = options_.page_tokens, heads = options_.kv_heads;
    const LayerCoding &layer = layer_coding(coding);
    const auto gather = [&](TensorView<const S> tensor, Index item, auto tail_row, float *rows) {
      for (Index token = 0; token < group; ++token) {
        const Index source = item / heads * group + token, head = item % heads;
        float *row = rows + token * d;
        const Index ahead = std::min(first + source - tail.tokens + 8, tensor.tokens - 1);
        if (ahead >= 0) prefetch_row(tensor.row(ahead, head));
        if (source < tail.tokens) {
          load_row(tail_row(head, source), d, row);
        } else {
          convert_row(tensor.row(first + source - tail.tokens, head), d, row);
          if constexpr (!std::is_same_v<S, Kept>) round_row<Kept>(row, d);
        }
      }
    };
    const auto pack_keys_of = [&](Index item, std::optional<KeySpace> wanted, float *rows,
                                  Scratch scratch) {
      gather(
          k, item, [&](Index head, Index token) { return tail.key(head, token); }, rows);
      return pack_keys<T>(layout_, head_coding(coding, item % heads), to_basis(item % heads), rows,
                          pages[static_cast<std::size_t>(item / heads)], item % heads, scratch, wanted);
    };
    const auto pack_values_of = [&](Index item, float *rows, Scratch scratch) {
      gather(
          v, item, [&](Index head, Index token) { return tail.value(head, token); }, rows);
      pack_values<T>(layout_, head_coding(coding, item % heads), *options_.fit, rows,
                     pages[static_cast<std::size_t>(item / heads)].data, item % heads, scratch);
    };
    const auto for_each_head = [&](auto run) {  // of each page
      workspace_.for_each(static_cast<Index>(pages.size()) * heads, [&](Index item, Scratch scratch) {
        auto *rows = scratch.take<float>(group * d);
        run(item, rows, scratch);
      });
    };
    if (!layer.shares()) {
      return for_each_head([&](Index item, float *rows, Scratch scratch) {
        pack_keys_of(item, {}, rows, scratch);
        pack_values_of(item, rows, scratch);
      });
    }
    for_each_head([&](Index item, float *rows, Scratch scratch) {
      coded_keys_[static_cast<std::size_t>(item)] = pack_keys_of(item, KeySpace::basis, rows, scratch);
    });
    for_each_head([&](Index item, float *rows, Scratch scratch) {
      const std::span<const CodedKeys> of_page(coded_keys_.data() + item / heads * heads,
                                               static_cast<std::size_t>(heads));
      if (!layer.suits(of_page)) pack_keys_of(item, KeySpace::channels, rows, scratch);
      pack_values_of(item, rows, scratch);
    });
  }

  /// Cuts the work of attend_reserved() and makes its memory.
  void reserve_attend(std::span<const Call> calls) {
    batch_.cut(calls, options_.kv_heads, heads_per_kv_head());
    workspace_.reserve(batch_.items(), batch_.most_bytes([&](Index rows) {
      return Head::scratch_bytes(layout_, rows);
    }));
    partials_.reserve(batch_.partial_rows(), options_.head_dim);
  }

  /// Attends for every sequence that was reserved: to what is cached and, causally, to the
  /// rows of k and v that stand where its queries stand. k.tokens = 0: the
  /// queries' own keys are cached.
  template <Element S>
  void attend_reserved(TensorView<const S> q, TensorView<const S> k, TensorView<const S> v,
                       const AttentionOutput<S> &out) {
    workspace_.for_each(batch_.items(), [&](Index index, Scratch scratch) {
      attend_item(batch_.item(index), q, k, v, out, scratch);
    });
    workspace_.for_each(batch_.merges(), [&](Index index, Scratch) { merge(batch_.merge(index), out); });
  }

  /// Writes the cached keys and values of a sequence and layer, [tokens,
  /// kv_heads, head_dim].
  template <Element S>
  void dequantize(const Call &call, TensorView<S> k, TensorView<S> v, Stream) {
    const Index d = options_.head_dim;
    const std::size_t bytes = 3 * Scratch::bytes<float>(layout_.group * d) + Scratch::bytes<float>(d) +
                              Scratch::bytes<float>(static_cast<Index>(to_basis_elements()));
    for_each_kv_head(bytes, [&](Index head, Scratch scratch) {
      const HeadCoding head_keys = head_coding(call.coding, head);
      auto *from_basis = scratch.take<float>(static_cast<Index>(to_basis_elements()));
      head_keys.transform->write_from_basis(from_basis);
      Index position = 0;
      auto *row = scratch.take<float>(d);
      const auto copy_rows = [&](const auto &rows) {
        for (Index token = 0; token < rows.tokens; ++token, ++position) {
          load_row(rows.key(head, token), d, row);
          write_row(row, 1, k.row(position, head));
          load_row(rows.value(head, token), d, row);
          write_row(row, 1, v.row(position, head));
        }
      };
      copy_rows(call.exact->sink_rows());
      for (const PageView &page : call.pages) {
        dequantize_page(head_keys, from_basis, page, head, k.slice(page.before, page.tokens),
                        v.slice(page.before, page.tokens), scratch);
        position = page.before + page.tokens;
      }
      call.exact->visit_tail(copy_rows);
    });
  }

  // ---- snapshots

  CodingRecord record_coding(Index coding, Stream) const { return layer_coding(coding).record(); }

  /// Becomes what a record says. Throws Error for one that is impossible.
  void adopt_coding(Index coding, const CodingRecord &record, Stream) {
    detail::RecordCheck(options_, layout_.key_bits)(record);
    squat::check_shares(layout_, record, *options_.allocation != Allocation::head,
                        *options_.allocation == Allocation::model);
    layer_coding(coding).adopt(record);
  }

  std::size_t page_record_bytes(Index coding) const {
    return Records::bytes(layout_, page_bytes(coding));
  }

  void write_pages(Index coding, std::span<const PageView> pages, std::byte *to, Stream) const {
    const Records records = page_records(coding);
    for (const PageView &page : pages) {
      records.write(page.data, to);
      to += page_record_bytes(coding);
    }
  }

  /// Throws Error for what is no page of the coding.
  void read_pages(Index coding, std::span<const PageView> pages, const std::byte *from, Stream) const {
    const Records records = page_records(coding);
    for (const PageView &page : pages) {
      records.read(from, page.data);
      from += page_record_bytes(coding);
    }
  }

  void write_rows(const Exact &exact, bool of_tail, Index first, Index count, std::byte *to,
                  Stream) const {
    exact.write(of_tail, first, count, to);
  }

  /// Adds rows to the sinks or the tail, which will hold `expected`. Throws Error for numbers that no
  /// rows have.
  void read_rows(Exact &exact, bool of_tail, Index count, Index expected, const std::byte *from,
                 Stream) const {
    detail::check_rows<T>(from, static_cast<std::size_t>(2 * options_.kv_heads * count),
                          static_cast<std::size_t>(options_.head_dim),
                          of_tail && options_.tail == TailCoding::int8);
    exact.read(options_, of_tail, count, expected, from);
  }

  std::size_t statistics_bytes() const {
    std::size_t sum = 0;
    for (const auto &coding : codings_) sum += coding ? coding->statistics_bytes() : 0;
    return sum;
  }

  std::size_t bases_bytes() const {
    std::size_t sum = 0;
    for (const auto &coding : codings_) sum += coding ? coding->bytes() : 0;
    for (const auto &tiles : tiles_) sum += tiles->bytes();
    return sum;
  }

  std::size_t workspace_bytes() const {
    return workspace_.bytes() + partials_.bytes() + to_bases_.bytes();
  }

 private:
  using Head = HeadAttention<T>;
  using Batch = AttendBatch<Call>;
  using Block = typename Batch::Block;

  /// Gives the HeadCoding of a head.
  struct HeadCodings {
    const Operations *operations;
    Index coding;
    HeadCoding operator()(Index head) const { return operations->head_coding(coding, head); }
  };
  using Records = PageRecords<T, HeadCodings>;
  Records page_records(Index coding) const {
    return {layout_, page_bytes(coding), layer_coding(coding), HeadCodings{this, coding}};
  }

  LayerCoding &layer_coding(Index coding) const { return *codings_[static_cast<std::size_t>(coding)]; }

  /// What is given once for all layers, or once a layer.
  template <class Item>
  static const Item &of_layer(const std::vector<Item> &items, int layer) {
    return items.size() == 1 ? items.front() : items[static_cast<std::size_t>(layer)];
  }

  HeadCoding head_coding(Index coding, Index head) const {
    const LayerCoding &layer = layer_coding(coding);
    const RotaryTable *rotary =
        options_.rotary.empty() ? nullptr : &of_layer(options_.rotary, layer.layer());
    return {layer.tiles(),
            rotary,
            &layer.quantizer(head),
            &layer.transform(head),
            layer.value_mean(head),
            layer.place(head, KeySpace::channels),
            layer.place(head, KeySpace::basis)};
  }

  /// Once all layers have learnt, gives each its part of the bytes of pages.
  void share_among_layers() {
    std::vector<LayerCoding *> layers;
    for (const auto &coding : codings_) {
      if (coding && !coding->learnt_nothing()) layers.push_back(coding.get());
    }
    const auto learnt = [](const LayerCoding *layer) { return layer->learnt(); };
    if (!std::all_of(layers.begin(), layers.end(), learnt)) return;
    std::vector<std::optional<ShareChoices>> choices;
    for (const LayerCoding *layer : layers) choices.push_back(layer->choices());
    const std::vector<std::size_t> bytes = squat::share_among_layers(choices, layout_.code_bytes());
    std::vector<std::optional<BitShares>> parts;
    for (std::size_t i = 0; i < layers.size(); ++i) parts.push_back(shares(choices[i], bytes[i]));
    for (std::size_t i = 0; i < layers.size(); ++i)
      layers[i]->share(std::move(parts[i]), bytes[i]);  // choices stay, for share_no_more()
  }

  /// Undoes that, for some layer has not learnt any more.
  void share_no_more() {
    for (const auto &coding : codings_) {
      if (coding) coding->share({}, layout_.code_bytes());
    }
  }

  std::optional<BitShares> shares(const std::optional<ShareChoices> &choices,
                                  std::size_t code_bytes) const {
    if (!choices) return {};
    return BitShares(layout_, *choices, code_bytes);
  }

  /// Of a head's matrix A, 0 for codings without bases.
  std::size_t to_basis_elements() const {
    const bool in_basis = *options_.coding == Coding::subspace && layout_.key_bits < 16;
    return in_basis ? static_cast<std::size_t>(options_.head_dim * options_.head_dim) : 0;
  }
  float *to_basis(Index head) const {
    return to_bases_.data() + static_cast<std::size_t>(head) * to_basis_elements();
  }

  Index heads_per_kv_head() const { return options_.query_heads / options_.kv_heads; }

  std::size_t pack_bytes() const {
    return pack_scratch_bytes(layout_) + Scratch::bytes<float>(layout_.group * layout_.head_dim);
  }

  std::size_t observe_bytes() const { return LayerCoding::scratch_bytes(options_, heads_per_kv_head()); }

  void reserve_kv_heads(std::size_t bytes) { workspace_.reserve(options_.kv_heads, bytes); }

  template <class Run>
  void for_each_kv_head(std::size_t bytes, Run &&run) {
    reserve_kv_heads(bytes);
    workspace_.for_each(options_.kv_heads, run);
  }

  /// A head's rows are far apart in the caller's tensors: no hardware foresees
  /// them.
  template <Element S>
  void prefetch_row(const S *row) const {
    for (Index i = 0; i < options_.head_dim; i += Index{64 / sizeof(S)}) __builtin_prefetch(row + i);
  }

  template <Element S>
  void attend_item(const typename Batch::Item &item, TensorView<const S> q, TensorView<const S> k,
                   TensorView<const S> v, const AttentionOutput<S> &out, Scratch scratch) {
    const Block &block = item.block;
    const Call &call = *block.call;
    const Index heads = heads_per_kv_head(), rows = block.tokens * heads;
    const auto pages = call.pages;
    const StoredRows<T> sinks = call.exact->sink_rows();
    Head attention(layout_, kernels_, head_coding(call.coding, block.head), block.head, rows, scratch);
    attention.begin(q, call, block.first, block.tokens, heads, options_.attention_scale,
                    score_rule(block.head));
    if (item.first_page == 0) {
      if (!call.draft.empty()) {
        attention.paths(k, v, call, block.first);
      } else if (k.tokens > 0) {
        attention.own(k.row(call.first_row, block.head), k.token_stride,
                      v.row(call.first_row, block.head), v.token_stride, call.past, call.tokens);
      }
      attention.exact(sinks, 0);
    }
    const auto last_page = static_cast<std::size_t>(item.last_page);
    for (auto i = static_cast<std::size_t>(item.first_page); i < last_page;) {
      if (!attention.sees(pages[i])) {
        ++i;
        continue;
      }
      const auto count = static_cast<std::size_t>(attention.together(pages.subspan(i, last_page - i)));
      attention.pages(pages.subspan(i, count), pages.subspan(i + count));
      i += count;
    }
    if (last_page == pages.size()) {
      const Index position = tail_begin(sinks.tokens, pages);
      call.exact->visit_tail([&](const auto &tail) { attention.exact(tail, position); });
    }
    if (item.partial_row < 0) {
      const RowView<const float> sums = attention.sums();
      for (Index row = 0; row < rows; ++row) {
        write_output(sums[row], attention.states()[row], block, row, out);
      }
    } else {
      partials_.store(item.partial_row, rows, attention.sums(), attention.states());
    }
  }

  /// Adds up what the runs of a block left, in their order.
  template <Element S>
  void merge(const typename Batch::Merge &merge, const AttentionOutput<S> &out) {
    const Index rows = merge.block.tokens * heads_per_kv_head();
    for (Index row = 0; row < rows; ++row) {
      const Index first = merge.partial_row + row;
      for (Index run = 1; run < merge.runs; ++run) partials_.merge(first, first + run * rows);
      write_output(partials_.sum(first), partials_.state(first), merge.block, row, out);
    }
  }

  template <Element S>
  void write_output(const float *sum, SoftmaxState state, const Block &block, Index row,
                    const AttentionOutput<S> &out) const {
    const Index heads = heads_per_kv_head();
    const Index token = block.call->first_row + block.first + row / heads,
                head = block.head * heads + row % heads;
    float factor = 1;
    if (!options_.sink_logits.empty()) {
      const Index layer = layer_coding(block.call->coding).layer();
      const float logit =
          options_.sink_logits[static_cast<std::size_t>(layer * options_.query_heads + head)];
      factor = state.raise(logit);
      state.sum += std::exp(logit - state.maximum);
    }
    const float inverse = state.sum > 0 ? factor / state.sum : 0.0f;
    S *output = out.rows.row(token, head);
    for (Index i = 0; i < options_.head_dim; i += float_lanes) {
      store_floats(output + i, load_floats(sum + i) * broadcast(inverse));
    }
    if (out.lse.tokens > 0) *out.lse.row(token, head) = state.maximum + std::log(state.sum);
  }

  /// What becomes of the scores of a KV head.
  ScoreRule score_rule(Index head) const {
    const float *slopes = options_.alibi_slopes.data();
    return {.soft_cap = options_.soft_cap,
            .slopes = options_.alibi_slopes.empty() ? nullptr : slopes + head * heads_per_kv_head(),
            .window = options_.attention_window};
  }

  template <class From, Element S>
  void write_row(const From *from, Index stride, S *to) const {
    for (Index i = 0; i < options_.head_dim; ++i)
      to[i] = static_cast<S>(static_cast<float>(from[i * stride]));
  }

  template <Element S>
  void dequantize_page(const HeadCoding &coding, const float *from_basis, const PageView &page,
                       Index head, TensorView<S> k, TensorView<S> v, Scratch scratch) const {
    const Index d = options_.head_dim, group = layout_.group;
    const HeadCodes codes = coding.codes(page.data, layout_.key_space(page.data, head));
    auto *keys = scratch.take<float>(group * d);
    if (layout_.key_bits == 16) {
      const auto *rows = codes.key_codes<Exact16<T>>();
      for (Index token = 0; token < group; ++token) {
        for (Index i = 0; i < d; ++i) keys[i * group + token] = static_cast<float>(rows[token * d + i]);
      }
    } else {
      auto *coordinates = scratch.take<float>(group * d);
      unpack_keys(layout_, codes, page.data, head, coordinates);
      if (codes.space == KeySpace::basis) {
        std::fill_n(keys, d * group, 0.0f);
        add_product<float>(strided_rows(from_basis, d, d),
                           strided_rows<const float>(coordinates, d, group),
                           strided_rows(keys, d, group));
      } else {
        std::swap(keys, coordinates);
      }
    }
    leave_frame(coding, page, d, group, keys);
    for (Index token = 0; token < page.tokens; ++token) {
      write_row(keys + page.first + token, group, k.row(token, head));
    }
    auto *values = scratch.take<float>(group * d);
    if (layout_.value_bits == 16) {
      convert_row(codes.value_codes<Exact16<T>>(), group * d, values);
    } else {
      unpack_values(layout_, codes, page.data, head, coding.value_mean, values);
    }
    for (Index token = 0; token < page.tokens; ++token) {
      float *value = values + (page.first + token) * d;
      if (layout_.value_bits < 16 && layout_.value_coding == ValueCoding::symmetric)
        rotate_hadamard_back(value, d);
      write_row(value, 1, v.row(token, head));
    }
  }

  Options options_;
  PageLayout layout_;
  CodeKernels kernels_;
  Workspace workspace_;
  std::vector<std::unique_ptr<TileTables>> tiles_;  // one, or one a layer; none: keys stay as they come
  std::vector<std::unique_ptr<LayerCoding>> codings_;  // by name
  Batch batch_;                                        // of the call in progress
  PartialResults partials_;
  Buffer<float> to_bases_;             // A of each KV head, of the coding whose pages are packed
  std::vector<CodedKeys> coded_keys_;  // [pages, kv_heads], of a call whose heads share bits
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
