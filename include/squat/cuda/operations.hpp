#pragma once

// The CUDA backend: the operations KVCache calls, see cache/backend.hpp for what each must do.
//
// A decode step (a token a sequence, all else in its place) is kernels alone, which count tokens and
// read page tables on the device: append_step, attend, pack where a page is due, finish_call.
// Everything else is planned by the host, which writes the states and the page tables that the
// kernels then find.

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "squat/cache/call.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/snapshot/check_numbers.hpp"
#include "squat/cache/snapshot/check_record.hpp"
#include "squat/cache/tail_rule.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/coding/prior.hpp"
#include "squat/coding/rotary_table.hpp"
#include "squat/core/config.hpp"
#include "squat/core/element_range.hpp"
#include "squat/core/error.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cuda/coding/codings.hpp"
#include "squat/cuda/error.hpp"
#include "squat/cuda/kernels/append_step.cuh"
#include "squat/cuda/kernels/attend_call.cuh"
#include "squat/cuda/kernels/attend_paths.cuh"
#include "squat/cuda/kernels/byte_rows.cuh"
#include "squat/cuda/kernels/check_elements.cuh"
#include "squat/cuda/kernels/dequantize.cuh"
#include "squat/cuda/kernels/exact_rows.cuh"
#include "squat/cuda/kernels/launch_attend.cuh"
#include "squat/cuda/kernels/pack_keys.cuh"
#include "squat/cuda/kernels/pack_values.cuh"
#include "squat/cuda/kernels/score_rule.cuh"
#include "squat/cuda/page/page_layouts.hpp"
#include "squat/cuda/page/page_record.hpp"
#include "squat/cuda/state/batch_arrays.hpp"
#include "squat/cuda/state/copy_each.cuh"
#include "squat/cuda/state/device_arena.hpp"
#include "squat/cuda/state/device_buffer.hpp"
#include "squat/cuda/state/device_scope.hpp"
#include "squat/cuda/state/device_state.cuh"
#include "squat/cuda/state/exact_store.hpp"
#include "squat/cuda/state/padding.cuh"
#include "squat/cuda/state/row_records.hpp"
#include "squat/cuda/state/write_each.cuh"

namespace squat::cuda {

/// SharesBits: heads may share the bits of a page: Options::allocation. Kind: Options::codes. Both of up
/// to 4 bits.
template <class T, int KeyBits, int ValueBits, class HeadDims, class Groups, bool SharesBits, Codes Kind>
class Operations {
  static_assert(!std::is_same_v<T, float>, "squat: on CUDA exact rows are half or bfloat16, not float");

 public:
  using Memory = DeviceBuffer<std::byte>;
  using Exact = ExactStore;
  using Call = SequenceCall<Exact>;
  using Padding = cuda::Padding;
  static int padded_head_dim(int head_dim) { return Layouts::padded(head_dim); }

  explicit Operations(const Options &options)
      : options_(std::make_unique<Options>(options)),
        arena_(std::make_unique<DeviceArena>()),
        codings_(*options_, KeyBits, ValueBits, shares_bits, trellis),
        batches_(static_cast<std::size_t>(options.layers)),
        reading_(4 * static_cast<std::size_t>(options.layers)),
        first_bad_(most_checked),
        errors_(1) {
    Layouts::check(options.head_dim, options.page_tokens);
    check_codes();
    check_sharing();
    const auto heads = static_cast<std::size_t>(options.kv_heads);
    const bool bytes = *options.tail == TailCoding::int8;
    with_layout([&]<class Layout>() {
      check_shared_memory<Layout>();
      if constexpr (!shares_bits)
        page_bytes_ = static_cast<std::size_t>(Layout::head_bytes(*options.values)) * heads;
      shape_.block_elements = BlockLayout<Layout::HeadDim>::elements * heads;
      shape_.tail_block_elements =
          bytes ? ByteSlots::block_bytes<Layout::HeadDim>() / 2 * heads : shape_.block_elements;
    });
    turns_in_place_ = std::ranges::all_of(options.rotary, [&](const RotaryTable &table) {
      return table.pairs == RotaryPairs::interleaved || 2 * table.pair_count() == options.head_dim;
    });
    shape_.byte_tail = bytes;
    shape_.sink_blocks = token_blocks(options.sinks);
    shape_.full_blocks = token_blocks(TailRule<>{options.residual, options.page_tokens}.full());
    errors_.fill(0, nullptr);
    upload_logits();
    cuda::check(cudaStreamSynchronize(nullptr), "start");
  }

  std::size_t page_bytes(Index coding) const {
    if constexpr (!shares_bits) return page_bytes_;
    return shared_page_bytes(options_->head_dim, kv_heads(), code_bytes(coding));
  }

  // ---- the device

  int device() const { return device_; }
  DeviceScope enter(cudaStream_t stream) const {
    check_stream(stream, device_);
    return DeviceScope(device_);
  }
  void check_memory(const char *name, const void *data) const { check_memory_(name, data); }

  // ---- codings

  Index add_coding(int layer) { return codings_.add(layer, captured_); }
  void remove_coding(Index coding) { codings_.remove(coding); }

  static bool observe_may_fail(Index) { return false; }
  /// Adds `count` tokens of a call, from its token `first` on, to the statistics of its coding. What
  /// queries attend to is weighed while there are no pages, where heads may share bits.
  template <Element S>
  void observe(const Call &call, TensorView<const S> q, TensorView<const S> k, TensorView<const S> v,
               Index first, Index count, cudaStream_t stream) {
    const bool means = KeyBits < 16 && ValueBits < 16 && *options_->values == ValueCoding::symmetric;
    const ObservedRows<S> rows = {.q = device_tensor(q),
                                  .k = device_tensor(k),
                                  .v = means ? device_tensor(v) : DeviceTensor<const S>{},
                                  .heads_per_kv_head = options_->query_heads / kv_heads(),
                                  .first = call.first_row + first,
                                  .tokens = static_cast<int>(count),
                                  .index = call.past + first,
                                  .position = call.position + first};
    with_layout([&]<class Layout>() {
      codings_.at(call.coding).template observe<Layout::HeadDim>(rows, observing_, stream);
      if constexpr (shares_bits) {
        if (weighs(call) && q.tokens > 0) weigh<Layout, S>(call, q, k, v, first, count, stream);
      }
    });
  }

  bool learn(Index coding, cudaStream_t stream) {
    bool learnt = false;
    with_layout([&]<class Layout>() {
      learnt = codings_.template learn<Layout::HeadDim>(coding, observing_, stream);
    });
    return learnt;
  }
  void learn_nothing(Index coding, cudaStream_t stream) { codings_.learn_nothing(coding, stream); }
  void forget(Index coding, cudaStream_t stream) { codings_.forget(coding, stream); }
  bool add_statistics(Index coding, Prior &prior) const {
    return codings_.add_statistics(coding, prior);
  }

  /// What a coding knew.
  using Backup = LayerCoding::Backup;
  Backup back_up(Index coding, cudaStream_t stream) const { return codings_.at(coding).back_up(stream); }
  void restore(Index coding, Backup backup) noexcept { codings_.restore(coding, std::move(backup)); }

  // ---- checks

  /// Waits for the stream.
  template <Element S>
  void check_elements(std::initializer_list<NamedTensor<S>> tensors, cudaStream_t stream) const {
    check(stream);
    std::array<unsigned long long, most_checked> bad;
    first_bad_.fill(0xff, stream);
    unsigned long long *place = first_bad_.data();
    for (const auto &[name, view, first] : tensors) {
      launch_count_bad<S>(device_tensor(view), view.tokens, static_cast<int>(view.heads),
                          static_cast<int>(view.head_dim), place++, stream);
      cuda::check(cudaGetLastError(), "check of elements");
    }
    download<unsigned long long>(first_bad_.data(), bad, stream);
    std::size_t index = 0;
    for (const auto &[name, view, first] : tensors) {
      const unsigned long long at = bad[index++];
      if (at == none_bad) continue;
      const auto element = static_cast<Index>(at), row = element / view.head_dim;
      const Index token = row / view.heads, head = row % view.heads, channel = element % view.head_dim;
      S value;
      download<S>(view.row(token, head) + channel, {&value, 1}, stream);
      throw_out_of_range(name, first + token, head, channel, static_cast<float>(value));
    }
  }

  /// Throws Error for what decode steps have met since the last call. Waits for the stream.
  void check(cudaStream_t stream) const {
    std::uint32_t errors = 0;
    download<std::uint32_t>(errors_.data(), {&errors, 1}, stream);
    if (errors == 0) return;
    errors_.fill(0, stream);
    if (errors & tail_full) {
      throw Error(
          "squat: decode steps met a full tail and dropped tokens: advance() was not called in time, or "
          "max_pages was reached");
    }
    throw Error(
        "squat: k or v of a decode step held elements that are not finite or of magnitude above 65504, "
        "which were taken as 0");
  }

  // ---- calls that the host plans

  /// Makes all device memory that observe() and append() need.
  void reserve(std::span<const Call> calls, bool attends, cudaStream_t stream) {
    overflows_.clear();
    std::size_t overflow = 0, entries = 0;
    most_overflow_ = 0;
    for (const Call &call : calls) {
      Exact &exact = *call.exact;
      const std::size_t pages = call.pages.size() + static_cast<std::size_t>(call.due);
      entries += static_cast<std::size_t>(call.due) + 1;
      const Index arrived = exact.tail() + call.tokens - call.sinks;
      const Index rest = arrived - call.due * options_->page_tokens;
      exact.reserve_table(pages, *arena_);
      const bool growing = call.tokens == 1 && exact.tail() > 0;
      exact.reserve_rows(shape_, rest, pages > 0 || growing, call.learnt, *arena_);
      const std::int32_t behind = std::max(0, token_blocks(arrived) - exact.next_tail_blocks());
      overflows_.push_back(overflow);
      overflow += shape_.tail_elements(behind);
      most_overflow_ = std::max(most_overflow_, behind);
      if (!call.observed) continue;
      codings_.at(call.coding).reserve_statistics(stream);
      with_layout([&]<class Layout>() {
        grow(observing_, DeviceStatistics::workspace_bytes<Layout::HeadDim>(kv_heads(), call.tokens),
             stream);
      });
      if (weighs(call)) grow(weighing_, Weighing(*options_, call).end, stream);
    }
    if (attends && shape_.byte_tail) {
      reserve_unpacked(
          calls, [](const Call &call) { return call.exact->tail() + call.tokens; }, stream);
    }
    grow_rows(rows_, overflow, stream);
    grow(call_batch_, calls.size(), stream);
    entries_.reserve(calls.size());
    states_.reserve(calls.size());
    pages_.reserve(entries);
    if (attends) reserve_attend(calls, stream);
  }

  /// Writes the call's rows behind those that are there, attends unless there are no queries to
  /// answer, and packs what became due.
  template <Element S>
  void append(std::span<const Call> calls, TensorView<const S> q, TensorView<const S> k,
              TensorView<const S> v, AttentionOutput<S> out, cudaStream_t stream) {
    const bool attends = out.rows.tokens > 0;
    entries_.clear();
    states_.clear();
    pages_.clear();
    Index most_tokens = 0, most_tail = 0, most_pages = 0;
    for (std::size_t i = 0; i < calls.size(); ++i) {
      const Call &call = calls[i];
      Exact &exact = *call.exact;
      std::uint16_t *overflow = rows_.data() + overflows_[i];
      exact.adopt(shape_, overflow, stream);
      exact.take(call.sinks, call.tokens - call.sinks);
      LayerState state = exact.state(call, shape_);
      state.overflow = overflow;
      state.position += call.tokens;
      states_.push_back({exact.device_state(), state});
      entries_.push_back({exact.device_state(), static_cast<std::int32_t>(call.first_row),
                          static_cast<std::int32_t>(call.tokens), static_cast<std::int32_t>(call.sinks),
                          true, unpacked(i, attends)});
      add_pages(exact, call.pages.size(), call.due_pages, call.ready_page);
      most_tokens = std::max(most_tokens, call.tokens);
      most_tail = std::max(most_tail, exact.tail());
      most_pages = std::max(most_pages, call.due);
    }
    write_added(stream);
    upload<BatchEntry>(entries_, call_batch_.data(), stream);
    with_layout([&]<class Layout>() {
      launch_append_rows<Layout::HeadDim, T, S>(call_batch_.data(), static_cast<int>(calls.size()),
                                                static_cast<int>(most_tokens), kv_heads(),
                                                device_tensor(k), device_tensor(v), stream);
      if (!shape_.byte_tail) return;
      launch_append_byte_rows<Layout::HeadDim, S>(call_batch_.data(), static_cast<int>(calls.size()),
                                                  static_cast<int>(most_tokens), kv_heads(),
                                                  device_tensor(k), device_tensor(v), stream);
      if (!attends) return;
      launch_unpack_tail<Layout::HeadDim, T, S>(call_batch_.data(), static_cast<int>(calls.size()),
                                                static_cast<int>(most_tail), kv_heads(), true,
                                                device_tensor(k), device_tensor(v), stream);
    });
    cuda::check(cudaGetLastError(), "append");
    if (attends) attend_batch<S>(call_batch_.data(), calls, q, out, stream);
    if (most_pages == 0) return;
    // Calls without rows pack what whole pages there are.
    const int residual = most_tokens > 0 ? options_->residual : 0;
    const PackCall packing = pack_call(call_batch_.data(), calls.size(), most_pages, residual);
    pack(packing, stream);
    with_layout([&]<class Layout>() {
      with_slots([&]<class Slots>() {
        launch_keep_overflow<Layout::HeadDim, Layout::Group, Slots>(packing, most_overflow_, stream);
      });
      launch_finish_call<Layout::Group>(packing, stream);
    });
    cuda::check(cudaGetLastError(), "append");
    for (const Call &call : calls) call.exact->drop(call.due * options_->page_tokens);
  }

  /// Attends to what is cached. A query that is not finite spoils its own output.
  template <Element S>
  void attend(std::span<const Call> calls, TensorView<const S> q, AttentionOutput<S> out,
              cudaStream_t stream) {
    read<S>(calls, q, out, nullptr, stream);
  }

  /// Attends to what is cached as attend() does, at the same cost, and to paths behind it, each row at
  /// the cost of its own (attend_paths.cuh); outputs are rounded to S in between.
  template <Element S>
  void draft(std::span<const Call> calls, TensorView<const S> q, TensorView<const S> k,
             TensorView<const S> v, AttentionOutput<S> out, cudaStream_t stream) {
    AttentionOutput<S> cached = out;
    if (out.lse.tokens == 0) {
      const Index heads = options_->query_heads;
      grow(draft_lse_, static_cast<std::size_t>(q.tokens * heads), stream);
      cached.lse = {draft_lse_.data(), q.tokens, heads, 1};
    }
    upload_draft(calls, q.tokens, stream);
    if (!draft_calls_.empty()) read<S>(draft_calls_, q, cached, draft_.data(), stream);
    PathCall<S> paths{.call = attend_call<S>(nullptr, calls, q, out),
                      .k = device_tensor(k),
                      .v = device_tensor(v),
                      .cached_lse = device_tensor(TensorView<const float>(cached.lse)),
                      .rows = static_cast<std::int32_t>(q.tokens)};
    paths.call.scale *= log2_e;
    paths.call.draft = draft_.data();
    with_layout([&]<class Layout>() { launch_attend_paths<Layout::HeadDim, T, S>(paths, stream); });
  }

  // ---- decode steps

  bool capturing(cudaStream_t stream) const { return is_capturing(stream); }

  bool can_step(const Exact &exact) const { return !exact.empty() && exact.room() > 0; }

  /// Appends a token to every layer of `calls`, attends unless there are no queries to answer, and packs
  /// where a page is due. Nothing is counted on the host.
  template <Element S>
  void step(std::span<const Call> calls, int layer, bool due, TensorView<const S> q,
            TensorView<const S> k, TensorView<const S> v, AttentionOutput<S> out, cudaStream_t stream) {
    const bool attends = out.rows.tokens > 0;
    make_entries(calls);
    if (attends) reserve_attend(calls, stream);
    const BatchEntry *batch = find_batch(batches_[static_cast<std::size_t>(layer)], stream);
    if (capturing(stream)) {
      for (const Call &call : calls) call.exact->note_capture();
    }
    with_layout([&]<class Layout>() {
      const int entries = static_cast<int>(calls.size());
      if (shape_.byte_tail) {
        launch_append_byte_step<Layout::HeadDim, S>(batch, entries, kv_heads(), device_tensor(k),
                                                    device_tensor(v), errors_.data(), stream);
      } else {
        launch_append_step<Layout::HeadDim, T, S>(batch, entries, kv_heads(), device_tensor(k),
                                                  device_tensor(v), errors_.data(), stream);
      }
    });
    if (attends) attend_batch<S>(batch, calls, q, out, stream);
    if (!due) return;
    const PackCall packing = pack_call(batch, calls.size(), 1, options_->residual);
    pack(packing, stream);
    with_layout([&]<class Layout>() { launch_finish_call<Layout::Group>(packing, stream); });
  }

  // ---- what changes outside a call

  /// Room in the table for so many pages.
  void reserve_pages(Exact &exact, std::size_t pages, cudaStream_t) {
    if (!exact.empty()) exact.reserve_table(pages, *arena_);
  }

  /// Tells the kernels of pages that were acquired ahead. The state is left to them, unless the table
  /// has moved.
  void publish_next_page(std::span<const Call> calls, cudaStream_t stream) {
    states_.clear();
    pages_.clear();
    for (const Call &call : calls) {
      Exact &exact = *call.exact;
      if (exact.adopt_table(stream))
        states_.push_back({exact.device_state(), exact.state(call, shape_)});
      add_pages(exact, call.pages.size(), {}, call.ready_page);
    }
    write_added(stream);
  }

  /// Tells the kernels all of layers that changed outside a call.
  void publish(std::span<const Call> calls, cudaStream_t stream) {
    states_.clear();
    pages_.clear();
    for (const Call &call : calls) {
      Exact &exact = *call.exact;
      if (exact.empty()) continue;
      exact.adopt_table(stream);
      add_pages(exact, 0, call.pages, call.ready_page);
      states_.push_back({exact.device_state(), exact.state(call, shape_)});
    }
    write_added(stream);
  }

  void reserve_state(Exact &exact) { exact.reserve_state(*arena_); }

  /// Tells the kernels of layers whose tables are there, but for the page that was acquired ahead.
  void publish_states(std::span<const Call> calls, cudaStream_t stream) {
    states_.clear();
    pages_.clear();
    for (const Call &call : calls) {
      Exact &exact = *call.exact;
      exact.adopt_state();
      states_.push_back({exact.device_state(), exact.state(call, shape_)});
      if (!exact.empty()) add_pages(exact, call.pages.size(), {}, call.ready_page);
    }
    write_added(stream);
  }

  /// Makes memory in empty stores for the first tokens of others.
  void reserve_copies(std::span<const ExactCopy<Exact>> copies) {
    for (const ExactCopy<Exact> &copy : copies) {
      copy.to->reserve_copy(*copy.from, shape_, copy.sinks, copy.tail, copy.pages.size(), *arena_);
    }
    copies_.reserve(most_pieces * copies.size());
    pages_.reserve(copies.size());
    states_.reserve(copies.size());
  }

  /// Fills them, and the tables of their pages, on the device.
  void copy(std::span<const ExactCopy<Exact>> copies, cudaStream_t stream) {
    copies_.clear();
    pages_.clear();
    for (const ExactCopy<Exact> &copy : copies) {
      const std::size_t pages = copy.pages.size();
      copy.to->adopt_copy(*copy.from, shape_, copy.sinks, copy.tail, pages, copies_);
      if (pages == 0) continue;
      PageEntry *last = copy.to->device_table() + pages - 1;  // which may be cut
      pages_.push_back({last, page_entry(copy.pages.back())});
    }
    launch_copy_each(copies_, stream);
    launch_write_each<PageEntry>(pages_, stream);
  }

  void reserve_shift(const Exact &exact, cudaStream_t stream) {
    grow_rows(rows_, exact.row_elements(), stream);
  }

  /// Exact tokens without those of `sinks` and `tail`, and what follows them turned by `by` positions.
  /// publish() follows.
  void shift(Index coding, Exact &exact, TokenRange sinks, TokenRange tail, Index by,
             cudaStream_t stream) {
    if (exact.empty()) return;
    const Index left_sinks = exact.sinks() - (sinks.last - sinks.first);
    const Index left_tail = exact.tail() - (tail.last - tail.first);
    cuda::check(cudaMemcpyAsync(rows_.data(), exact.rows(), exact.row_elements() * 2,
                                cudaMemcpyDeviceToDevice, stream),
                "shift");
    const auto close = [&](auto to, TokenRange range, Index left) {
      auto from = to;
      from.ring = reinterpret_cast<decltype(to.ring)>(
          rows_.data() + (reinterpret_cast<const std::uint16_t *>(to.ring) - exact.rows()));
      const Index behind = left - range.first;
      if (range.last > range.first) copy_rows(from, range.last, behind, to, range.first, stream);
      if (by == 0) return;
      with_layout([&]<class Layout>() {
        launch_turn_rows<Layout::HeadDim, T>(to, static_cast<int>(range.first), static_cast<int>(behind),
                                             kv_heads(), codings_.at(coding).tables().tiles, by, stream);
      });
      cuda::check(cudaGetLastError(), "shift");
    };
    close(exact.sink_slots(shape_, kv_heads()), sinks, left_sinks);
    with_slots([&]<class Slots>() {
      close(exact.template tail_slots<Slots>(shape_, kv_heads()), tail, left_tail);
    });
    exact.truncate(left_sinks, left_tail);
  }

  // ---- what is there

  /// Writes the cached keys and values of a sequence and layer, [tokens, kv_heads, head_dim].
  template <Element S>
  void dequantize(const Call &call, TensorView<S> k, TensorView<S> v, cudaStream_t stream) {
    const Exact &exact = *call.exact;
    if (k.tokens == 0) return;
    const std::vector<RowMatrix> inverses = codings_.at(call.coding).from_bases();
    const auto elements = static_cast<std::size_t>(options_->head_dim * options_->head_dim);
    grow(from_bases_, inverses.size() * elements, stream);
    for (std::size_t head = 0; head < inverses.size(); ++head) {
      const std::span inverse(inverses[head].data(), static_cast<std::size_t>(inverses[head].size()));
      upload<float>(inverse, from_bases_.data() + head * elements, stream);
    }
    const DequantizeCall<S> unpack = {.state = exact.device_state(),
                                      .codings = codings_.tables(),
                                      .from_bases = from_bases_.data(),
                                      .values = *options_->values,
                                      .k = device_tensor(k),
                                      .v = device_tensor(v)};
    with_layout([&]<class Layout>() {
      const auto unpack_rows = [&](auto slots, Index first, Index count) {
        launch_dequantize_rows<Layout::HeadDim, T>(slots, static_cast<int>(count), kv_heads(), unpack.k,
                                                   unpack.v, static_cast<int>(first), stream);
      };
      unpack_rows(exact.sink_slots(shape_, kv_heads()), 0, exact.sinks());
      launch_dequantize_pages<Layout, T>(unpack, static_cast<int>(call.pages.size()), kv_heads(),
                                         stream);
      with_slots([&]<class Slots>() {
        unpack_rows(exact.template tail_slots<Slots>(shape_, kv_heads()), k.tokens - exact.tail(),
                    exact.tail());
      });
    });
  }

  // ---- snapshots

  CodingRecord record_coding(Index coding, cudaStream_t stream) const {
    return codings_.at(coding).record(stream);
  }

  void adopt_coding(Index coding, const CodingRecord &record, cudaStream_t stream) {
    detail::RecordCheck(*options_, KeyBits)(record);
    check_shares(codings_.page(), record, shares_bits && *options_->allocation != Allocation::head,
                 *options_->allocation == Allocation::model);
    check_shared_widths(codings_.page(), record);
    with_layout([&]<class Layout>() {
      codings_.template adopt<Layout::HeadDim>(coding, record, observing_, stream);
    });
  }

  std::size_t page_record_bytes(Index coding) const {
    std::size_t parameters = 0;
    with_layout([&]<class Layout>() {
      parameters = PageRecord<Layout, T>(*options_->values).parameter_bytes();
    });
    return static_cast<std::size_t>(kv_heads()) * parameters + code_bytes(coding);
  }

  /// Pages are brought to the host and put into the record's order there.
  void write_pages(Index coding, std::span<const PageView> pages, std::byte *to,
                   cudaStream_t stream) const {
    const std::size_t bytes = page_bytes(coding);
    std::vector<std::byte> staged(pages.size() * bytes);
    for (std::size_t i = 0; i < pages.size(); ++i) {
      cuda::check(cudaMemcpyAsync(staged.data() + i * bytes, pages[i].data, bytes,
                                  cudaMemcpyDeviceToHost, stream),
                  "pages of a snapshot");
    }
    cuda::check(cudaStreamSynchronize(stream), "pages of a snapshot");
    std::memset(to, 0, pages.size() * page_record_bytes(coding));
    for_each_head_of_pages(
        coding, pages.size(), staged.data(), to,
        [&](auto &record, const PagePart &part, std::byte *parameters, std::byte *codes) {
          record.write(part, codings_.at(coding).quantizer(part.head), parameters, codes);
        });
  }

  void read_pages(Index coding, std::span<const PageView> pages, const std::byte *from,
                  cudaStream_t stream) const {
    const std::size_t bytes = page_bytes(coding);
    std::vector<std::byte> staged(pages.size() * bytes);
    for_each_head_of_pages(
        coding, pages.size(), staged.data(), from,
        [&](auto &record, const PagePart &part, const std::byte *parameters, const std::byte *codes) {
          record.read(parameters, codes, codings_.at(coding).quantizer(part.head),
                      codings_.at(coding).has_value_mean(part.head), part);
          check_space(coding, part.head, record.space(part), codes);
        });
    for (std::size_t i = 0; i < pages.size(); ++i) {
      cuda::check(cudaMemcpyAsync(pages[i].data, staged.data() + i * bytes, bytes,
                                  cudaMemcpyHostToDevice, stream),
                  "pages of a snapshot");
    }
    cuda::check(cudaStreamSynchronize(stream), "pages of a snapshot");
  }

  void write_rows(const Exact &exact, bool of_tail, Index first, Index count, std::byte *to,
                  cudaStream_t stream) const {
    with_row_blocks(exact, of_tail, first, count, [&]<class Records>(const auto &blocks) {
      std::vector<std::byte> staged(blocks.count * blocks.bytes);
      copy_blocks(blocks, staged.data(), cudaMemcpyDeviceToHost, stream);
      for_each_row<Records>(blocks, first, count, [&](std::size_t block, int token, bool of_value) {
        Records::write(staged.data() + block, token, of_value, to);
        to += Records::row_bytes;
      });
    });
  }

  void read_rows(Exact &exact, bool of_tail, Index count, Index, const std::byte *from,
                 cudaStream_t stream) {
    detail::check_rows<T>(from, static_cast<std::size_t>(2 * kv_heads() * count),
                          static_cast<std::size_t>(options_->head_dim), of_tail && shape_.byte_tail);
    const Index first = of_tail ? exact.tail() : exact.sinks();
    exact.reserve_table(0, *arena_);
    exact.reserve_rows(shape_, exact.tail() + (of_tail ? count : 0), true, false, *arena_);
    exact.adopt(shape_, nullptr, stream);
    with_row_blocks(exact, of_tail, first, count, [&]<class Records>(const auto &blocks) {
      std::vector<std::byte> staged(blocks.count * blocks.bytes);
      copy_blocks(blocks, staged.data(), cudaMemcpyDeviceToHost, stream);  // the first may hold rows
      for_each_row<Records>(blocks, first, count, [&](std::size_t block, int token, bool of_value) {
        Records::read(from, token, of_value, staged.data() + block);
        from += Records::row_bytes;
      });
      copy_blocks(blocks, staged.data(), cudaMemcpyHostToDevice, stream);
    });
    exact.take(of_tail ? 0 : count, of_tail ? count : 0);
  }

  std::size_t statistics_bytes() const { return codings_.statistics_bytes(); }
  std::size_t bases_bytes() const { return codings_.bytes(); }
  std::size_t workspace_bytes() const {
    std::size_t sum = attend_.bytes() + observing_.bytes() + weighing_.bytes() + rows_.bytes() +
                      unpacked_.bytes() + call_batch_.bytes() + reading_.bytes() + draft_.bytes() +
                      draft_lse_.bytes() + first_bad_.bytes() + errors_.bytes() + arena_->bytes() -
                      arena_->used_bytes() + from_bases_.bytes();
    for (const BatchArrays &batches : batches_) sum += batches.bytes();
    for (const auto &buffer : retired_) sum += buffer.bytes();
    for (const auto &rows : retired_rows_) sum += rows.bytes();
    return sum;
  }

 private:
  static constexpr bool shares_bits = SharesBits && KeyBits <= 4 && ValueBits <= 4;
  static constexpr bool trellis = Kind == Codes::trellis && KeyBits <= 4 && ValueBits <= 4;
  using Layouts = PageLayouts<KeyBits, ValueBits, HeadDims, Groups, shares_bits,
                              trellis ? Codes::trellis : Codes::scalar>;

  static constexpr std::size_t most_checked = 3;  // tensors of a call
  static constexpr std::size_t most_pieces = 5;   // of the rows and the table of a copy

  // ---- attention that is weighed

  /// Whether what the queries of a call attend to is weighed.
  bool weighs(const Call &call) const {
    return shares_bits && call.pages.empty() &&
           (*options_->allocation != Allocation::head || options_->keep_statistics);
  }

  /// Memory for it, in floats: what the cache holds before the call, as rows, weighed queries of some
  /// tokens, and what was found of each.
  struct Weighing {
    static constexpr Index most_tokens = 512;  // at a time
    std::size_t values, queries, sums, end;

    Weighing(const Options &options, const Call &call) {
      const auto row = [&](int heads) { return static_cast<std::size_t>(heads * options.head_dim); };
      const auto tokens = static_cast<std::size_t>(std::min<Index>(call.tokens, most_tokens));
      values = static_cast<std::size_t>(call.past) * row(options.kv_heads);
      queries = 2 * values;
      sums = (queries + tokens * row(options.query_heads) + 3) / 4 * 4;
      end = sums + 4 * tokens * static_cast<std::size_t>(options.query_heads);
    }
  };

  template <class Layout, Element S>
  void weigh(const Call &call, TensorView<const S> q, TensorView<const S> k, TensorView<const S> v,
             Index first, Index count, cudaStream_t stream) {
    constexpr int HeadDim = Layout::HeadDim;
    const Weighing memory(*options_, call);
    const Exact &exact = *call.exact;
    const Index of_kv = Index{kv_heads()} * HeadDim, of_query = Index{options_->query_heads} * HeadDim;
    const DeviceTensor<float> past_k{weighing_.data(), of_kv, HeadDim},
        past_v{weighing_.data() + memory.values, of_kv, HeadDim};
    launch_dequantize_rows<HeadDim, T>(exact.sink_slots(shape_, kv_heads()), exact.sinks(), kv_heads(),
                                       past_k, past_v, 0, stream);
    with_slots([&]<class Slots>() {
      launch_dequantize_rows<HeadDim, T>(exact.template tail_slots<Slots>(shape_, kv_heads()),
                                         exact.tail(), kv_heads(), past_k, past_v, exact.sinks(),
                                         stream);
    });
    LayerCoding &coding = codings_.at(call.coding);
    float *const weighed = weighing_.data() + memory.queries;
    auto *const sums = reinterpret_cast<float4 *>(weighing_.data() + memory.sums);
    const int heads = options_->query_heads / kv_heads();
    for (Index done = 0; done < count; done += Weighing::most_tokens) {
      const auto tokens = static_cast<std::int32_t>(std::min(Weighing::most_tokens, count - done));
      const WeighCall<S> weighing{.q = device_tensor(q),
                                  .k = device_tensor(k),
                                  .v = device_tensor(v),
                                  .past_k = {past_k.data, of_kv, HeadDim},
                                  .past_v = {past_v.data, of_kv, HeadDim},
                                  .first_row = call.first_row,
                                  .past = static_cast<std::int32_t>(call.past),
                                  .first = static_cast<std::int32_t>(first + done),
                                  .tokens = tokens,
                                  .query_heads = options_->query_heads,
                                  .heads_per_kv_head = heads,
                                  .sinks = options_->sinks,
                                  .residual = options_->residual,
                                  .bases = DeviceStatistics::bases(coding.tables().tiles),
                                  .scale = options_->attention_scale,
                                  .weighed = weighed,
                                  .sums = sums};
      const dim3 grid(static_cast<unsigned>(options_->query_heads), static_cast<unsigned>(tokens));
      weigh_attention<HeadDim, T, S><<<grid, weigh_warps * warp_lanes, 0, stream>>>(weighing);
      coding.template add_weighed<HeadDim>(ObservedRows<float>{.q = {weighed, of_query, HeadDim},
                                                               .k = {},
                                                               .v = {},
                                                               .heads_per_kv_head = heads,
                                                               .first = 0,
                                                               .tokens = tokens,
                                                               .index = call.past + first + done,
                                                               .position = call.position + first + done},
                                           sums, observing_, stream);
    }
  }

  /// Throws Error where codes are not those that kernels are for.
  void check_codes() const {
    if (trellis && *options_->values == ValueCoding::plain)
      throw_invalid("values", "plain", "symmetric where codes are trellis codes on CUDA");
    if (trellis == (*options_->codes == Codes::trellis)) return;
    const bool shares = SharesBits || *options_->allocation != Allocation::head;
    const std::string backend = shares ? "CudaSharingTrellis" : "CudaTrellis";
    if (trellis) throw_invalid("codes", "scalar", "trellis where the backend is " + backend);
    throw_invalid("codes", "trellis",
                  "scalar on CUDA, unless the backend is " + backend +
                      ", for up to 4 bits and heads of 64, 128 or 192 channels");
  }

  /// Throws Error where heads are to share bits, and cannot.
  void check_sharing() const {
    const Allocation allocation = *options_->allocation;
    if (shares_bits && *options_->values == ValueCoding::plain)
      throw_invalid("values", "plain", "symmetric where heads may share bits on CUDA");
    if (shares_bits && *options_->coding == Coding::orthogonal)
      throw_invalid("coding", "orthogonal", "subspace or plain where heads may share bits on CUDA");
    if (shares_bits || allocation == Allocation::head || KeyBits > 4) return;
    const std::string backend = trellis ? "CudaSharingTrellis" : "CudaSharing";
    throw_invalid("allocation", name_of(allocation),
                  "head on CUDA, unless the backend is " + backend +
                      ", for up to 4 bits and heads of multiples of 64 channels");
  }

  /// Throws Error where kernels need more shared memory than the device has.
  template <class Layout>
  void check_shared_memory() const {
    const int room = device_limits().shared_bytes;
    if (pack_keys_bytes<Layout>(*options_->coding) > room) {
      throw_invalid("head_dim", options_->head_dim,
                    "less, or page_tokens less, where kernels are for fewer: packing takes more shared "
                    "memory than this device has bytes for a block,",
                    room);
    }
    if constexpr (!is_mixed(KeyBits, ValueBits)) {
      const bool plain = ValueBits < 16 && *options_->values == ValueCoding::plain;
      if constexpr (Layout::has_plain_values) {
        if (plain) (void)decode_plan<DecodeMemory<Layout, ValueCoding::plain>>(1, most_entries, room);
      }
      if (!plain) (void)decode_plan<DecodeMemory<Layout, ValueCoding::symmetric>>(1, most_entries, room);
    }
  }

  /// Runs run<Layout>() for the options' head_dim and group.
  template <class Run>
  void with_layout(Run &&run) const {
    Layouts::with(options_->head_dim, options_->page_tokens, run);
  }

  /// Runs run<Slots>() for what tails are kept as.
  template <class Run>
  void with_slots(Run &&run) const {
    if (shape_.byte_tail) {
      run.template operator()<ByteSlots>();
    } else {
      run.template operator()<ExactSlots>();
    }
  }

  int kv_heads() const { return options_->kv_heads; }

  /// Slopes, then sinks' logits, times log2 e.
  void upload_logits() {
    std::vector<float> all(options_->alibi_slopes);
    all.insert(all.end(), options_->sink_logits.begin(), options_->sink_logits.end());
    for (float &logit : all) logit *= log2_e;
    logits_ = DeviceBuffer<float>(all.size());
    upload<float>(all, logits_.data(), nullptr);
  }

  // ---- records of snapshots

  /// Of the codes of a page; of none, as many as were asked for.
  std::size_t code_bytes(Index coding) const {
    return coding < 0 ? codings_.page().code_bytes() : codings_.at(coding).code_bytes();
  }

  /// Throws Error for the space of a head that shares bits with those before in a page, and for what is
  /// behind the last of their codes.
  void check_space(Index coding, Index head, KeySpace space, const std::byte *codes) const {
    const LayerCoding &layer = codings_.at(coding);
    if (layer.shares() == nullptr) return;
    const auto require = [](bool holds, const char *what) {
      if (!holds) throw Error(std::string("squat: snapshot.pages are impossible: ") + what);
    };
    if (head == 0) page_space_ = space;
    require(space == page_space_, "heads of a page differ in their space");
    require(space == KeySpace::basis || layer.shares()->plain_fits(), "plain keys that do not fit");
    if (head + 1 < kv_heads()) return;
    const HeadPlace place = layer.place(head, space);
    const std::size_t end = place.values + codings_.page().value_bytes(place.value_bits);
    require(detail::all_zero(codes + end, code_bytes(coding) - end), "bytes that are no codes");
  }

  /// Calls run(record, part of the page, parameters, codes of all heads) for every head of pages of a
  /// coding and of records that stand one after another.
  template <class Byte, class Run>
  void for_each_head_of_pages(Index coding, std::size_t count, std::byte *pages, Byte *records,
                              Run &&run) const {
    const std::size_t record_bytes = page_record_bytes(coding), bytes = page_bytes(coding);
    const LayerCoding &layer = codings_.at(coding);
    const std::vector<HeadTables> placed = layer.placed();
    with_layout([&]<class Layout>() {
      PageRecord<Layout, T> record(*options_->values);
      for (std::size_t page = 0; page < count; ++page, pages += bytes, records += record_bytes) {
        Byte *codes = records + (record_bytes - code_bytes(coding));
        for (int head = 0; head < kv_heads(); ++head) {
          const auto i = static_cast<std::size_t>(head);
          auto *const begin = reinterpret_cast<std::uint8_t *>(pages);
          PagePart part{
              .head = head,
              .in_record = {layer.place(head, KeySpace::channels), layer.place(head, KeySpace::basis)},
              .page = begin};
          if constexpr (Layout::shares_bits) {
            part.parameters = begin + Layout::parameters(head, kv_heads());
            part.places = {placed[i].places[0], placed[i].places[1]};
          } else {
            part.parameters =
                begin + i * static_cast<std::size_t>(Layout::head_bytes(*options_->values));
          }
          run(record, part, records + i * record.parameter_bytes(), codes);
        }
      }
    });
  }

  /// Blocks of 16 rows in device memory, each of all KV heads.
  struct RowBlocks {
    std::vector<std::byte *> data;
    std::size_t count;
    std::size_t bytes;  ///< of a block
  };

  /// Calls run<RowRecords>(blocks) for those that rows [first, first + count) stand in.
  template <class Run>
  void with_row_blocks(const Exact &exact, bool of_tail, Index first, Index count, Run &&run) const {
    if (count == 0) return;
    const auto with = [&]<class Slots>(const Slots &slots) {
      with_layout([&]<class Layout>() {
        RowBlocks blocks{
            {},
            0,
            Slots::template block_bytes<Layout::HeadDim>() * static_cast<std::size_t>(kv_heads())};
        for (Index token = first / 16 * 16; token < first + count; token += 16) {
          blocks.data.push_back(reinterpret_cast<std::byte *>(
              slots.template block<Layout::HeadDim>(0, static_cast<int>(token))));
        }
        blocks.count = blocks.data.size();
        run.template operator()<RowRecords<Slots, Layout::HeadDim>>(blocks);
      });
    };
    if (!of_tail) return with(exact.sink_slots(shape_, kv_heads()));
    with_slots([&]<class Slots>() { with(exact.template tail_slots<Slots>(shape_, kv_heads())); });
  }

  /// Copies blocks to or from host memory, where they stand one after another, and waits.
  static void copy_blocks(const RowBlocks &blocks, std::byte *host, cudaMemcpyKind kind,
                          cudaStream_t stream) {
    for (std::byte *block : blocks.data) {
      const bool to_host = kind == cudaMemcpyDeviceToHost;
      cuda::check(
          cudaMemcpyAsync(to_host ? host : block, to_host ? block : host, blocks.bytes, kind, stream),
          "rows of a snapshot");
      host += blocks.bytes;
    }
    cuda::check(cudaStreamSynchronize(stream), "rows of a snapshot");
  }

  /// Calls run(first byte of the head's block, row of it, of its value) in the order of a record.
  template <class Records, class Run>
  void for_each_row(const RowBlocks &blocks, Index first, Index count, Run &&run) const {
    const std::size_t of_head = blocks.bytes / static_cast<std::size_t>(kv_heads());
    for (Index token = first; token < first + count; ++token) {
      const auto block = static_cast<std::size_t>(token / 16 - first / 16);
      for (const bool of_value : {false, true}) {
        for (int head = 0; head < kv_heads(); ++head) {
          run(block * blocks.bytes + static_cast<std::size_t>(head) * of_head,
              static_cast<int>(token % 16), of_value);
        }
      }
    }
  }

  template <class Scalar>
  static DeviceTensor<Scalar> device_tensor(TensorView<Scalar> view) {
    return {view.data, view.token_stride, view.head_stride};
  }

  template <class Slots>
  void copy_rows(Slots from, Index first, Index count, Slots to, Index to_first,
                 cudaStream_t stream) const {
    with_layout([&]<class Layout>() {
      launch_copy_rows<Layout::HeadDim>(from, static_cast<int>(first), static_cast<int>(count),
                                        kv_heads(), to, static_cast<int>(to_first), stream);
    });
    cuda::check(cudaGetLastError(), "copy of exact rows");
  }

  // ---- the one place where states and tables are written

  /// Notes the table's entries from `first` on: of `pages`, and of the one behind them, which has no
  /// data while it is not there.
  void add_pages(const Exact &exact, std::size_t first, std::span<const PageView> pages,
                 const PageView &ready) {
    PageEntry *entry = exact.device_table() + first;
    for (const PageView &page : pages) pages_.push_back({entry++, page_entry(page)});
    pages_.push_back({entry, page_entry(ready)});
  }

  void write_added(cudaStream_t stream) const {
    launch_write_each<PageEntry>(pages_, stream);
    launch_write_each<LayerState>(states_, stream);
  }

  // ---- batches

  void make_entries(std::span<const Call> calls, bool unpacks = false) {
    entries_.clear();
    for (std::size_t i = 0; i < calls.size(); ++i) {
      const Call &call = calls[i];
      entries_.push_back({call.exact->device_state(), static_cast<std::int32_t>(call.first_row),
                          static_cast<std::int32_t>(call.tokens), 0, call.causal && call.draft.empty(),
                          unpacked(i, unpacks)});
    }
  }

  /// Room for tails of bytes as exact rows, of as many tokens a call as tokens_of says. Captured graphs
  /// go on with the old one.
  template <class TokensOf>
  void reserve_unpacked(std::span<const Call> calls, TokensOf &&tokens_of, cudaStream_t stream) {
    unpacked_begins_.clear();
    std::size_t elements = 0;
    for (const Call &call : calls) {
      unpacked_begins_.push_back(elements);
      elements += static_cast<std::size_t>(token_blocks(tokens_of(call))) * shape_.block_elements;
    }
    if (elements <= unpacked_.size()) return;
    if (captured_) retired_rows_.push_back(std::exchange(unpacked_, {}));
    grow_rows(unpacked_, elements, stream);
  }
  std::uint16_t *unpacked(std::size_t call, bool unpacks) const {
    return unpacks && shape_.byte_tail ? unpacked_.data() + unpacked_begins_[call] : nullptr;
  }

  const BatchEntry *find_batch(BatchArrays &batches, cudaStream_t stream) {
    const bool captured = capturing(stream);
    captured_ |= captured;
    return batches.find(entries_, captured, stream);
  }

  // ---- kernels

  /// Room for attend_batch() of the same calls. Captured graphs go on with the old one.
  void reserve_attend(std::span<const Call> calls, cudaStream_t stream) {
    most_tokens_ = most_pages_ = 0;
    // What a graph will meet is not known, and of what one has met a page may not be counted yet.
    const bool captured = capturing(stream);
    const std::size_t uncounted = captured_ ? 1 : 0;
    std::size_t table_pages = 0;
    for (const Call &call : calls) {
      const std::size_t capacity = call.exact->table_capacity();
      const std::size_t most = captured ? capacity : std::min(capacity, call.pages.size() + uncounted);
      most_tokens_ = std::max(most_tokens_, static_cast<std::int32_t>(call.tokens));
      most_pages_ += static_cast<std::int32_t>(most);
      table_pages += capacity;
    }
    const std::size_t bytes = attend_workspace_bytes(
        options_->head_dim, static_cast<int>(calls.size()), options_->query_heads, kv_heads(),
        most_tokens_, static_cast<int>(table_pages), KeyBits, ValueBits, *options_->values);
    if (bytes <= attend_.bytes()) return;
    if (captured_) retired_.push_back(std::exchange(attend_, {}));
    grow(attend_, bytes, stream);
    cuda::check(cudaMemsetAsync(attend_.data(), 0, counter_bytes, stream), "workspace");
  }

  /// Attends to what is cached. draft: see AttendCall; logits of sinks are left to who merges it.
  template <Element S>
  void read(std::span<const Call> calls, TensorView<const S> q, const AttentionOutput<S> &out,
            const DraftRow *draft, cudaStream_t stream) {
    reserve_attend(calls, stream);
    const bool unpacks = shape_.byte_tail && most_tokens_ > 1;
    Index most_tail = 0;
    if (unpacks) {
      reserve_unpacked(
          calls, [](const Call &call) { return call.exact->capacity(); }, stream);
      for (const Call &call : calls) most_tail = std::max(most_tail, call.exact->capacity());
    }
    make_entries(calls, unpacks);
    const BatchEntry *batch = find_batch(reading_, stream);
    if (unpacks) {
      with_layout([&]<class Layout>() {
        launch_unpack_tail<Layout::HeadDim, T, S>(batch, static_cast<int>(calls.size()),
                                                  static_cast<int>(most_tail), kv_heads(), false, {}, {},
                                                  stream);
      });
      cuda::check(cudaGetLastError(), "tail");
    }
    attend_batch<S>(batch, calls, q, out, stream, draft);
  }

  /// Takes the rows of a draft to the device, and notes the calls whose sequences are not empty.
  void upload_draft(std::span<const Call> calls, Index rows, cudaStream_t stream) {
    draft_calls_.clear();
    draft_rows_.assign(static_cast<std::size_t>(rows), DraftRow{});
    for (const Call &call : calls) {
      const bool cached = call.past > 0;
      if (cached) draft_calls_.push_back(call);
      auto row = draft_rows_.begin() + call.first_row;
      for (const DraftToken &token : call.draft) {
        *row++ = {
            .parent = static_cast<std::int32_t>(token.parent < 0 ? -1 : call.first_row + token.parent),
            .depth = static_cast<std::int32_t>(token.depth),
            .cached = cached};
      }
    }
    grow(draft_, draft_rows_.size(), stream);
    upload<DraftRow>(draft_rows_, draft_.data(), stream);
  }

  template <Element S>
  AttendCall<S> attend_call(const BatchEntry *batch, std::span<const Call> calls, TensorView<const S> q,
                            const AttentionOutput<S> &out) const {
    AttendCall<S> call{};
    call.batch = batch;
    call.entries = static_cast<std::int32_t>(calls.size());
    call.heads_per_kv_head = options_->query_heads / kv_heads();
    call.kv_heads = kv_heads();
    call.scale = options_->attention_scale;
    call.codings = codings_.tables();
    call.q = device_tensor(q);
    call.out = device_tensor(out.rows);
    call.lse = device_tensor(out.lse);
    call.rule = score_rule(codings_.at(calls.front().coding).layer());
    call.most_pages = most_pages_;
    call.turns_in_place = turns_in_place_;
    return call;
  }

  template <Element S>
  void attend_batch(const BatchEntry *batch, std::span<const Call> calls, TensorView<const S> q,
                    const AttentionOutput<S> &out, cudaStream_t stream,
                    const DraftRow *draft = nullptr) const {
    AttendCall<S> call = attend_call<S>(batch, calls, q, out);
    call.draft = draft;
    if (draft != nullptr) call.rule.sink_logits = nullptr;
    with_layout([&]<class Layout>() {
      launch_attend<Layout, T>(call, *options_->values, most_tokens_, attend_.data(), stream);
    });
  }

  /// What becomes of the scores of a layer.
  ScoreRule score_rule(int layer) const {
    const std::size_t slopes = options_->alibi_slopes.size();
    const float *logits = logits_.data() + slopes + layer * options_->query_heads;
    const float cap = options_->soft_cap * log2_e;
    return {.soft_cap = cap,
            .inverse_cap = cap > 0 ? 1 / cap : 0.0f,
            .window = options_->attention_window,
            .slopes = slopes > 0 ? logits_.data() : nullptr,
            .sink_logits = options_->sink_logits.empty() ? nullptr : logits};
  }

  PackCall pack_call(const BatchEntry *batch, std::size_t entries, Index most_pages,
                     int residual) const {
    return {.batch = batch,
            .entries = static_cast<int>(entries),
            .most_pages = static_cast<int>(most_pages),
            .kv_heads = kv_heads(),
            .residual = residual,
            .codings = codings_.tables(),
            .coding = *options_->coding,
            .fit = *options_->fit,
            .values = *options_->values};
  }

  void pack(const PackCall &call, cudaStream_t stream) const {
    with_layout([&]<class Layout>() {
      launch_pack_keys<Layout, T>(call, stream);
      launch_pack_values<Layout, T>(call, stream);
    });
  }

  /// Makes a buffer larger whose contents nobody needs any more.
  template <class Scalar>
  static void grow(DeviceBuffer<Scalar> &buffer, std::size_t size, cudaStream_t stream) {
    if (size <= buffer.size()) return;
    if (buffer.size() > 0) cuda::check(cudaStreamSynchronize(stream), "workspace");
    buffer = {};
    buffer = DeviceBuffer<Scalar>(size);
  }

  /// The same for rows, whose elements are numbers at all times: what lies behind the last token of a
  /// block is multiplied by 0.
  static void grow_rows(DeviceBuffer<std::uint16_t> &rows, std::size_t elements, cudaStream_t stream) {
    if (elements <= rows.size()) return;
    grow(rows, elements, stream);
    rows.fill(0, stream);
  }

  int device_ = current_device();
  mutable MemoryCheck check_memory_{device_};
  std::unique_ptr<const Options> options_;  // codings refer to it
  std::unique_ptr<DeviceArena> arena_;      // stores refer to it
  Codings codings_;
  std::size_t page_bytes_ = 0;
  mutable KeySpace page_space_{};  // of the page that is read
  ExactShape shape_{};
  bool turns_in_place_ = false;           // see AttendCall
  std::vector<BatchArrays> batches_;      // of steps, a layer each
  BatchArrays reading_;                   // of attend() and draft()
  DeviceBuffer<DraftRow> draft_;          // of draft(), a row of its tensors each
  DeviceBuffer<float> draft_lse_;         // of what is cached, where nobody asks for them
  DeviceBuffer<BatchEntry> call_batch_;   // of a call that the host plans
  DeviceBuffer<std::byte> attend_;        // workspace
  DeviceBuffer<std::uint16_t> rows_;      // of a tail, while a call lasts
  DeviceBuffer<float> weighing_;          // see Weighing
  DeviceBuffer<std::uint16_t> unpacked_;  // tails of bytes as exact rows, likewise
  DeviceBuffer<std::byte> observing_;     // workspace of statistics and of what is learnt from them
  DeviceBuffer<float> from_bases_;        // of dequantize()
  DeviceBuffer<float> logits_;            // see upload_logits()
  DeviceBuffer<unsigned long long> first_bad_;
  DeviceBuffer<std::uint32_t> errors_;  // of steps
  bool captured_ = false;               // there are graphs that name buffers
  std::vector<DeviceBuffer<std::byte>> retired_;
  std::vector<DeviceBuffer<std::uint16_t>> retired_rows_;

  // Of the call in progress.
  std::vector<std::size_t> overflows_;  // where the tokens that a tail has no slot for begin, in rows_
  std::vector<std::size_t> unpacked_begins_;  // of the tails in unpacked_
  std::int32_t most_overflow_ = 0;            // blocks of a sequence
  std::int32_t most_tokens_ = 0;              // of a sequence
  std::int32_t most_pages_ = 0;               // of all sequences together
  std::vector<BatchEntry> entries_;
  std::vector<Call> draft_calls_;
  std::vector<DraftRow> draft_rows_;
  std::vector<Write<LayerState>> states_;
  std::vector<Write<PageEntry>> pages_;
  std::vector<PieceCopy> copies_;
};

}  // namespace squat::cuda

namespace squat {

/// The CUDA backend, with kernels for some head_dims and groups. T of a cache is half or bfloat16;
/// tensors are in device memory; every call takes a stream.
/// SharesBits: those of CudaSharing; Kind: those of CudaTrellis; both: of CudaSharingTrellis.
template <class HeadDims, class Groups, bool SharesBits = false, Codes Kind = Codes::scalar>
struct CudaOf {
  using Stream = cudaStream_t;  ///< the last argument of every call
  /// What KVCache calls.
  template <class T, int KeyBits, int ValueBits>
  using Operations = cuda::Operations<T, KeyBits, ValueBits, HeadDims, Groups, SharesBits, Kind>;

  /// Of a cache with these options, defaults filled in.
  template <class T, int KeyBits, int ValueBits>
  static Operations<T, KeyBits, ValueBits> make_operations(const Options &options) {
    return Operations<T, KeyBits, ValueBits>(options);
  }
};

/// Any group, a few head_dims: what is left out need not be compiled.
template <int... HeadDims>
using CudaFor = CudaOf<cuda::OneOf<HeadDims...>, cuda::OneOf<32, 64, 128>>;

using Cuda = CudaFor<64, 96, 128, 256>;

/// Kernels for caches of up to 4 bits whose heads share these (Options::allocation), in pages of 128
/// tokens; head_dims are multiples of 64.
template <int... HeadDims>
using CudaSharing = CudaOf<cuda::OneOf<HeadDims...>, cuda::OneOf<128>, true>;

/// Kernels for trellis codes of caches of up to 4 bits (Options::codes), in pages of 128 tokens;
/// head_dims are 64, 128 and 192.
template <int... HeadDims>
using CudaTrellis = CudaOf<cuda::OneOf<HeadDims...>, cuda::OneOf<128>, false, Codes::trellis>;

/// Kernels for trellis codes of bits that heads share.
template <int... HeadDims>
using CudaSharingTrellis = CudaOf<cuda::OneOf<HeadDims...>, cuda::OneOf<128>, true, Codes::trellis>;

}  // namespace squat
