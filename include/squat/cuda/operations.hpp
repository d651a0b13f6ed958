#pragma once

// The CUDA backend: the operations KVCache calls, see cache/backend.hpp for what each must do.
//
// A decode step (a token a sequence, all else in its place) is kernels alone, which count tokens and
// read page tables on the device: append_step, attend, pack where a group is due, finish_step.
// Everything else is planned by the host, which writes the rows, the states and the page tables that the
// kernels then find.

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "squat/attention/context.hpp"
#include "squat/config.hpp"
#include "squat/cuda/append.cuh"
#include "squat/cuda/batch_arrays.hpp"
#include "squat/cuda/device_buffer.hpp"
#include "squat/cuda/device_state.cuh"
#include "squat/cuda/error.hpp"
#include "squat/cuda/exact_store.hpp"
#include "squat/cuda/host_tensor.hpp"
#include "squat/cuda/launch_attend.cuh"
#include "squat/cuda/layer_coding.hpp"
#include "squat/cuda/pack_keys.cuh"
#include "squat/cuda/pack_values.cuh"
#include "squat/cuda/page_layouts.hpp"
#include "squat/cuda/page_table.hpp"
#include "squat/cuda/unpack_page.hpp"
#include "squat/cuda/write_each.cuh"
#include "squat/element_range.hpp"
#include "squat/error.hpp"
#include "squat/options.hpp"
#include "squat/quantize/prior.hpp"
#include "squat/tensor.hpp"

namespace squat::cuda {

template <class T, int KeyBits, int ValueBits, class HeadDims, class Groups>
class Operations {
  static_assert(!std::is_same_v<T, float>, "squat: on CUDA exact rows are half or bfloat16, not float");

 public:
  using Memory = DeviceBuffer<std::byte>;
  using Exact = ExactStore;
  using Context = DeviceContext;
  using Job = SequenceJob<Context>;
  using Append = AppendJob<Exact>;
  using View = LayerView<Exact>;
  static constexpr bool steps_alone = true;

  explicit Operations(const Options &options)
      : options_(std::make_unique<Options>(options)),
        batches_(static_cast<std::size_t>(options.layers)),
        reading_(static_cast<std::size_t>(options.layers)),
        first_bad_(most_checked),
        errors_(1) {
    PageLayouts<KeyBits, ValueBits, HeadDims, Groups>::check(options.head_dim, options.page_tokens);
    with_layout([&]<class Layout>() {
      page_bytes_ = static_cast<std::size_t>(Layout::head_bytes(*options.values)) *
                    static_cast<std::size_t>(options.kv_heads);
      block_elements_ = BlockLayout<Layout::HeadDim>::elements;
    });
    if (options.rotary.empty()) tiles_.push_back(std::make_unique<DeviceTiles>(nullptr, 0));
    for (const RotaryTable &table : options.rotary) {
      tiles_.push_back(std::make_unique<DeviceTiles>(&table, *options.tile_tokens));
    }
    errors_.fill(0, nullptr);
    cuda::check(cudaStreamSynchronize(nullptr), "start");
  }

  std::size_t page_bytes() const { return page_bytes_; }

  // ---- codings

  Index add_coding(int layer) {
    auto coding = std::make_unique<LayerCoding>(*options_, KeyBits, layer, *of_layer(tiles_, layer));
    auto place = std::find(codings_.begin(), codings_.end(), nullptr);
    if (place == codings_.end()) {
      grow_tables(codings_.size() + 1);
      place = codings_.insert(place, nullptr);
    }
    const Index name = place - codings_.begin();
    upload_tables(name, *coding, nullptr);
    cuda::check(cudaStreamSynchronize(nullptr), "coding tables");
    *place = std::move(coding);
    return name;
  }

  void remove_coding(Index coding) { codings_[static_cast<std::size_t>(coding)].reset(); }

  /// Adds tokens of a call to the statistics of a coding.
  template <Element S>
  void observe(Index coding, TensorView<const S> q, TensorView<const S> k, Index first, Index count,
               Index index, Index position, cudaStream_t stream) {
    const ObservedRows<S> rows = {.q = device_tensor(q),
                                  .k = device_tensor(k),
                                  .heads_per_kv_head = options_->query_heads / kv_heads(),
                                  .first = first,
                                  .tokens = static_cast<int>(count),
                                  .index = index,
                                  .position = position};
    with_layout([&]<class Layout>() {
      layer_coding(coding).template observe<Layout::HeadDim>(rows, observing_, stream);
    });
  }

  /// Fixes a coding from its statistics.
  void learn(Index coding, cudaStream_t stream) {
    LayerCoding &layer = layer_coding(coding);
    layer.learn([&](auto &&task) { for_each_kv_head(task); }, stream);
    upload_tables(coding, layer, stream);
  }

  bool add_statistics(Index coding, Prior &prior) const {
    const LayerCoding &from = layer_coding(coding);
    if (!from.has_statistics()) return false;
    const std::vector<QueryStatistics> heads = from.statistics(nullptr);
    for (std::size_t head = 0; head < heads.size(); ++head) {
      prior.head(from.layer(), static_cast<Index>(head)).merge(heads[head]);
    }
    return true;
  }

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
        "squat: k or v of a decode step held elements that are not finite or of magnitude above 65504; "
        "they "
        "were taken as 0");
  }

  // ---- calls that the host plans

  /// What a coding knew.
  using Backup = LayerCoding::Backup;
  Backup back_up(Index coding, cudaStream_t stream) const {
    return layer_coding(coding).back_up(stream);
  }
  void restore(Index coding, Backup backup) noexcept {
    LayerCoding &layer = layer_coding(coding);
    layer.restore(std::move(backup));
    // A copy that fails here belongs to a device that no later call can use either.
    (void)cudaMemcpy(tables_.data() + coding, &layer.tables(), sizeof(CodingTables),
                     cudaMemcpyHostToDevice);
  }

  /// Makes all device memory that observe(), enter() and settle() need.
  void reserve(std::span<const Append> appends, std::span<const Job>, bool attends,
               cudaStream_t stream) {
    moves_.clear();
    std::size_t scratch = 0;
    for (const Append &append : appends) {
      Exact &exact = *append.layer.exact;
      exact.reserve_table(append.layer.pages.size() + static_cast<std::size_t>(append.due), stream);
      const std::int32_t needed = token_blocks(exact.tail() + append.tokens - append.sinks);
      const bool fits = exact.rows() != nullptr && needed <= exact.tail_blocks();
      Move move;
      if (append.learnt) {
        move.tail_blocks = usual_blocks();
        if (exact.rows() == nullptr || exact.tail_blocks() != usual_blocks()) {
          move.rows = make_rows(move.tail_blocks, stream);
        }
        if (needed > usual_blocks()) {
          move.work_blocks = needed;
          move.work = std::exchange(scratch, scratch + row_elements(needed));
        }
      } else if (!fits) {
        move.tail_blocks = std::max({usual_blocks(), needed, 2 * exact.tail_blocks()});
        move.rows = make_rows(move.tail_blocks, stream);
      }
      moves_.push_back(std::move(move));
    }
    grow(scratch_, scratch, stream);
    scratch_used_ = scratch;
    grow(call_batch_, appends.size(), stream);
    AttendSize size;
    for (const Append &append : appends) {
      size.add(*append.layer.exact, append.tokens);
      if (!append.observed) continue;
      layer_coding(append.layer.coding).reserve_statistics(stream);
      with_layout([&]<class Layout>() {
        grow(observing_, DeviceStatistics::workspace_bytes<Layout::HeadDim>(kv_heads(), append.tokens),
             stream);
      });
    }
    if (attends) reserve_attend(size, stream);
  }

  /// Writes the call's rows behind those that are there, and attends unless there are no queries to
  /// answer.
  template <Element S>
  void enter(std::span<const Append> appends, std::span<const Job>, TensorView<const S> q,
             TensorView<const S> k, TensorView<const S> v, TensorView<S> out, cudaStream_t stream) {
    AttendSize size;
    for (const Append &append : appends) size.add(*append.layer.exact, append.tokens);
    entries_.clear();
    states_.clear();
    clear_scratch(stream);
    for (std::size_t i = 0; i < appends.size(); ++i) {
      const Append &append = appends[i];
      const Exact &exact = *append.layer.exact;
      Move &move = moves_[i];
      place(move, exact);
      if (move.tail.data != exact.rows()) {
        copy_rows(exact.sink_slots(), 0, exact.sinks(), move.sinks, 0, stream);
        copy_rows(exact.tail_slots(), 0, exact.tail(), move.tail, 0, stream);
      }
      write_rows<S>(append, k, v, 0, append.sinks, move.sinks, exact.sinks(), stream);
      write_rows<S>(append, k, v, append.sinks, append.tokens - append.sinks, move.tail, exact.tail(),
                    stream);
      LayerState state = state_of(append.layer);
      state.exact = move.tail.data;
      state.sink_blocks = move.tail.first_block;
      state.tail_blocks = move.tail.capacity / 16;
      state.tail_first = move.tail.first;
      state.sinks += static_cast<std::int32_t>(append.sinks);
      state.tail += static_cast<std::int32_t>(append.tokens - append.sinks);
      states_.push_back({exact.device_state(), state});
      entries_.push_back({exact.device_state(), static_cast<std::int32_t>(append.first_row),
                          static_cast<std::int32_t>(append.tokens)});
    }
    launch_write_each<LayerState>(states_, stream);
    upload<BatchEntry>(entries_, call_batch_.data(), stream);
    if (out.tokens > 0) attend_batch<S>(call_batch_.data(), size, q, out, stream);
  }

  /// Packs what became due, and keeps the rest in a tail of the usual room once the coding is there.
  template <Element S>
  void settle(std::span<const Append> appends, TensorView<const S>, TensorView<const S>,
              cudaStream_t stream) {
    Index most_pages = 0;
    for (const Append &append : appends) {
      most_pages = std::max(most_pages, append.due);
      append.layer.exact->take(append.sinks, append.tokens - append.sinks);
      const std::size_t known = append.layer.pages.size() - static_cast<std::size_t>(append.due);
      upload_pages(append.layer, append.layer.exact->stale() ? 0 : known, stream);
    }
    if (most_pages > 0) pack(call_batch_.data(), appends.size(), most_pages, stream);
    states_.clear();
    bool moved = false;
    for (std::size_t i = 0; i < appends.size(); ++i) {
      const Append &append = appends[i];
      Exact &exact = *append.layer.exact;
      Move &move = moves_[i];
      const Index packed = append.due * options_->page_tokens;
      if (move.rows.size() > 0) {
        exact.exchange_rows(move.rows, sink_blocks(), move.tail_blocks);
        moved = true;
      }
      exact.drop(packed);
      if (move.work_blocks > 0) {
        exact.rewind();
        copy_rows(move.sinks, 0, exact.sinks(), exact.sink_slots(), 0, stream);
        copy_rows(move.tail, packed, exact.tail(), exact.tail_slots(), 0, stream);
      }
      add_state(append.layer);
    }
    launch_write_each<LayerState>(states_, stream);
    // Old rows go when nobody reads them any more.
    if (moved) cuda::check(cudaStreamSynchronize(stream), "append");
    moves_.clear();
  }

  /// Attends to what is cached. A query that is not finite spoils its own output.
  template <Element S>
  void attend(std::span<const Job> jobs, TensorView<const S> q, TensorView<S> out, cudaStream_t stream) {
    AttendSize size;
    entries_.clear();
    for (const Job &job : jobs) {
      size.add(*job.context.exact, job.tokens);
      entries_.push_back({job.context.exact->device_state(), static_cast<std::int32_t>(job.first_row),
                          static_cast<std::int32_t>(job.tokens)});
    }
    reserve_attend(size, stream);
    attend_batch<S>(find_batch(reading_, stream), size, q, out, stream);
  }

  // ---- decode steps

  bool capturing(cudaStream_t stream) const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    cuda::check(cudaStreamIsCapturing(stream, &status), "stream");
    return status != cudaStreamCaptureStatusNone;
  }

  bool can_step(const Exact &exact) const {
    return !exact.empty() && !exact.stale() && exact.tail_blocks() == usual_blocks() && exact.room() > 0;
  }

  /// Appends a token to every layer of `views`, attends unless there are no queries to answer, and packs
  /// where a group is due. Nothing is counted on the host.
  template <Element S>
  void step(std::span<const View> views, int layer, bool due, TensorView<const S> q,
            TensorView<const S> k, TensorView<const S> v, TensorView<S> out, cudaStream_t stream) {
    AttendSize size;
    entries_.clear();
    for (const View &view : views) {
      size.add(*view.exact, 1);
      entries_.push_back({view.exact->device_state(), static_cast<std::int32_t>(entries_.size()), 1});
    }
    if (out.tokens > 0) reserve_attend(size, stream);
    const BatchEntry *batch = find_batch(batches_[static_cast<std::size_t>(layer)], stream);
    if (capturing(stream)) {
      for (const View &view : views) view.exact->note_capture();
    }
    with_layout([&]<class Layout>() {
      launch_append_step<Layout::HeadDim, T, S>(batch, static_cast<int>(views.size()), kv_heads(),
                                                device_tensor(k), device_tensor(v), errors_.data(),
                                                stream);
    });
    cuda::check(cudaGetLastError(), "append of a step");
    if (out.tokens > 0) attend_batch<S>(batch, size, q, out, stream);
    if (!due) return;
    pack(batch, views.size(), 1, stream);
    with_layout([&]<class Layout>() {
      launch_finish_step<Layout::Group>(pack_call(batch, views.size(), 1), stream);
    });
    cuda::check(cudaGetLastError(), "end of a step");
  }

  /// Tells the kernels of pages laid ready. Where a table cannot grow, steps wait for a call that the
  /// host plans.
  void show_next(std::span<const View> views, cudaStream_t stream) {
    pages_.clear();
    states_.clear();
    for (const View &view : views) {
      Exact &exact = *view.exact;
      try {
        exact.reserve_table(view.pages.size(), stream);
      } catch (const Error &) {
        exact.set_stale(true);
        continue;
      }
      if (exact.stale()) {
        upload_pages(view, 0, stream);
        add_state(view);
      } else {
        const Index before = exact.sinks() + paged_tokens(view.pages);
        pages_.push_back(
            {exact.device_table() + view.pages.size(), next_entry(view.pages, view.next, before)});
      }
    }
    launch_write_each<PageEntry>(pages_, stream);
    launch_write_each<LayerState>(states_, stream);
  }

  /// Tells the kernels all of layers that changed otherwise.
  void show(std::span<const View> views, cudaStream_t stream) {
    states_.clear();
    for (const View &view : views) {
      if (view.exact->empty()) continue;
      upload_pages(view, 0, stream);
      add_state(view);
    }
    launch_write_each<LayerState>(states_, stream);
  }

  // ---- shifts

  void reserve_shift(Exact &exact, std::size_t pages, cudaStream_t stream) {
    if (exact.empty()) return;
    exact.reserve_table(pages, stream);
    grow(scratch_, row_elements(exact.tail_blocks()), stream);
  }

  /// Exact tokens without those of `sinks` and `tail`, and what follows them turned by `by` positions.
  /// show() follows.
  void shift(Index coding, Exact &exact, TokenRange sinks, TokenRange tail, Index by,
             cudaStream_t stream) {
    if (exact.empty()) return;
    const Index left_sinks = exact.sinks() - (sinks.last - sinks.first);
    const Index left_tail = exact.tail() - (tail.last - tail.first);
    const ExactSlots to_sinks = exact.sink_slots(), to_tail = exact.tail_slots();
    ExactSlots from_sinks = to_sinks, from_tail = to_tail;
    from_sinks.data = from_tail.data = scratch_.data();
    cuda::check(cudaMemcpyAsync(scratch_.data(), exact.rows(), row_elements(exact.tail_blocks()) * 2,
                                cudaMemcpyDeviceToDevice, stream),
                "shift");
    const auto close = [&](ExactSlots from, ExactSlots to, TokenRange range, Index left) {
      const Index behind = left - range.first;
      if (range.last > range.first) copy_rows(from, range.last, behind, to, range.first, stream);
      if (by == 0) return;
      with_layout([&]<class Layout>() {
        launch_turn_rows<Layout::HeadDim, T>(to, static_cast<int>(range.first), static_cast<int>(behind),
                                             kv_heads(), layer_coding(coding).tables().tiles, by,
                                             stream);
      });
      cuda::check(cudaGetLastError(), "shift");
    };
    close(from_sinks, to_sinks, sinks, left_sinks);
    close(from_tail, to_tail, tail, left_tail);
    exact.truncate(left_sinks, left_tail);
  }

  // ---- what is there

  /// Writes the cached keys and values of a sequence and layer, [tokens, kv_heads, head_dim]. The host
  /// works them out.
  template <Element S>
  void dequantize(Index coding, const Context &context, TensorView<S> k, TensorView<S> v,
                  cudaStream_t stream) {
    HostTensor<S> keys(k.tokens, k.heads, k.head_dim), values = keys;
    if (k.tokens == 0) return;
    const Exact &exact = *context.exact;
    std::vector<std::uint16_t> rows(row_elements(exact.tail_blocks()));
    download<std::uint16_t>(exact.rows(), rows, stream);
    std::vector<std::byte> page(page_bytes_);
    const LayerCoding &layer = layer_coding(coding);
    const std::vector<RowMatrix> inverses = layer.from_bases();
    const RotaryTable *rotary =
        options_->rotary.empty() ? nullptr : &of_layer(options_->rotary, layer.layer());
    with_layout([&]<class Layout>() {
      const auto unpack_exact = [&](ExactSlots slots, Index first, Index count) {
        slots.data = rows.data();
        unpack_slots<Layout::HeadDim, T>(slots, keys.view().slice(first, count),
                                         values.view().slice(first, count));
      };
      unpack_exact(exact.sink_slots(), 0, exact.sinks());
      unpack_exact(exact.tail_slots(), k.tokens - exact.tail(), exact.tail());
      Index first = exact.sinks();
      for (const PageView &view : context.pages) {
        download<std::byte>(view.data, page, stream);
        for_each_kv_head([&](Index head) {
          const auto h = static_cast<std::size_t>(head);
          const std::size_t head_bytes = page_bytes_ / static_cast<std::size_t>(kv_heads());
          const HeadPage<Layout, T> head_page(page.data() + h * head_bytes, *options_->values);
          unpack_page(head_page, {layer.quantizer(head), inverses[h], layer.tiles().frame(), rotary},
                      view, head, keys.view().slice(first, view.tokens),
                      values.view().slice(first, view.tokens));
        });
        first += view.tokens;
      }
    });
    copy_tensor<S>(keys.view(), k, cudaMemcpyHostToDevice, stream);
    copy_tensor<S>(values.view(), v, cudaMemcpyHostToDevice, stream);
    cuda::check(cudaStreamSynchronize(stream), "dequantize");
  }

  std::size_t statistics_bytes() const {
    std::size_t sum = 0;
    for (const auto &coding : codings_) sum += coding ? coding->statistics_bytes() : 0;
    return sum;
  }

  std::size_t bases_bytes() const {
    std::size_t sum = tables_.bytes();
    for (const auto &coding : codings_) sum += coding ? coding->bytes() : 0;
    for (const auto &tiles : tiles_) sum += tiles->bytes();
    return sum;
  }

  std::size_t workspace_bytes() const {
    std::size_t sum = attend_.bytes() + observing_.bytes() + scratch_.bytes() + call_batch_.bytes() +
                      reading_.bytes() + first_bad_.bytes() + errors_.bytes();
    for (const BatchArrays &batches : batches_) sum += batches.bytes();
    for (const auto &buffer : retired_) sum += buffer.bytes();
    return sum;
  }

 private:
  static constexpr std::size_t most_checked = 3;  // tensors of a call

  /// What becomes of a store's rows in a call.
  struct Move {
    DeviceBuffer<std::uint16_t> rows;  // new ones, where the present ones will not do
    std::int32_t tail_blocks = 0;      // of those
    std::int32_t work_blocks = 0;      // of a tail in scratch memory while the call lasts; 0: none
    std::size_t work = 0;              // where that begins
    ExactSlots sinks{}, tail{};        // where the call's tokens stand before any is packed
  };

  // ---- dispatch

  /// Runs run<Layout>() for the options' head_dim and group.
  template <class Run>
  void with_layout(Run &&run) const {
    PageLayouts<KeyBits, ValueBits, HeadDims, Groups>::with(options_->head_dim, options_->page_tokens,
                                                            run);
  }

  /// In order, or by the engine's threads.
  template <class Run>
  void for_each_kv_head(Run &&run) const {
    const auto task = [&](int head) { run(Index{head}); };
    if (options_->parallel) {
      options_->parallel(options_->kv_heads, task);
    } else {
      for (int head = 0; head < options_->kv_heads; ++head) task(head);
    }
  }

  int kv_heads() const { return options_->kv_heads; }

  // ---- codings

  LayerCoding &layer_coding(Index coding) const { return *codings_[static_cast<std::size_t>(coding)]; }

  /// What is given once for all layers, or once a layer.
  template <class Item>
  static const Item &of_layer(const std::vector<Item> &items, int layer) {
    return items.size() == 1 ? items.front() : items[static_cast<std::size_t>(layer)];
  }

  /// Room for so many codings on the device; graphs that were captured read on from the old ones.
  void grow_tables(std::size_t count) {
    if (tables_.size() >= count) return;
    DeviceBuffer<CodingTables> tables(
        std::max({count, 2 * tables_.size(), static_cast<std::size_t>(options_->layers)}));
    tables.fill(0, nullptr);
    cuda::check(cudaMemcpy(tables.data(), tables_.data(), tables_.bytes(), cudaMemcpyDeviceToDevice),
                "coding tables");
    cuda::check(cudaDeviceSynchronize(), "coding tables");
    std::swap(tables_, tables);
    if (captured_) retired_tables_.push_back(std::move(tables));
  }

  void upload_tables(Index coding, const LayerCoding &layer, cudaStream_t stream) {
    upload<CodingTables>({&layer.tables(), 1}, tables_.data() + coding, stream);
  }

  // ---- exact rows

  std::int32_t sink_blocks() const { return token_blocks(options_->sinks); }
  /// Blocks of a tail once the coding is there.
  std::int32_t usual_blocks() const { return token_blocks(options_->residual + options_->page_tokens); }
  std::size_t row_elements(std::int32_t tail_blocks) const {
    return static_cast<std::size_t>(sink_blocks() + tail_blocks) * static_cast<std::size_t>(kv_heads()) *
           block_elements_;
  }

  /// Zeros: what lies behind the last token of a block is multiplied by 0, and must be finite.
  DeviceBuffer<std::uint16_t> make_rows(std::int32_t tail_blocks, cudaStream_t stream) const {
    DeviceBuffer<std::uint16_t> rows(row_elements(tail_blocks));
    rows.fill(0, stream);
    return rows;
  }

  void clear_scratch(cudaStream_t stream) const {
    if (scratch_used_ == 0) return;
    cuda::check(cudaMemsetAsync(scratch_.data(), 0, scratch_used_ * sizeof(std::uint16_t), stream),
                "append");
  }

  /// Where the call's tokens go: to scratch memory, to the new rows or to the present ones.
  void place(Move &move, const Exact &exact) const {
    move.sinks = exact.sink_slots();
    move.tail = exact.tail_slots();
    const bool works = move.work_blocks > 0;
    if (!works && move.rows.size() == 0) return;
    std::uint16_t *rows = works ? scratch_.data() + move.work : move.rows.data();
    const std::int32_t tail = works ? move.work_blocks : move.tail_blocks, all = sink_blocks() + tail;
    move.sinks = {rows, all, 0, 16 * sink_blocks(), 0};
    move.tail = {rows, all, sink_blocks(), 16 * tail, 0};
  }

  void copy_rows(ExactSlots from, Index first, Index count, ExactSlots to, Index to_first,
                 cudaStream_t stream) const {
    if (count == 0) return;
    with_layout([&]<class Layout>() {
      launch_copy_rows<Layout::HeadDim>(from, static_cast<int>(first), static_cast<int>(count),
                                        kv_heads(), to, static_cast<int>(to_first), stream);
    });
    cuda::check(cudaGetLastError(), "copy of exact rows");
  }

  /// Rows [first, first + count) of an append, to the slots from `at` on.
  template <Element S>
  void write_rows(const Append &append, TensorView<const S> k, TensorView<const S> v, Index first,
                  Index count, ExactSlots to, Index at, cudaStream_t stream) const {
    if (count == 0) return;
    with_layout([&]<class Layout>() {
      launch_append_rows<Layout::HeadDim, T, S>(device_tensor(k), device_tensor(v),
                                                append.first_row + first, static_cast<int>(count),
                                                kv_heads(), to, static_cast<int>(at), stream);
    });
    cuda::check(cudaGetLastError(), "append");
  }

  // ---- states and page tables

  static LayerState state_of(const View &view) {
    return view.exact->state(view.pages.size(), paged_tokens(view.pages), view.coding, view.position);
  }

  void add_state(const View &view) {
    states_.push_back({view.exact->device_state(), state_of(view)});
    view.exact->set_stale(false);
  }

  /// The table from entry `first` on, and what lies ready behind it.
  void upload_pages(const View &view, std::size_t first, cudaStream_t stream) {
    write_table(view.pages, view.next, view.exact->sinks(), first, table_entries_);
    upload<PageEntry>(table_entries_, view.exact->device_table() + first, stream);
  }

  const BatchEntry *find_batch(BatchArrays &batches, cudaStream_t stream) {
    const bool captured = capturing(stream);
    captured_ |= captured;
    return batches.find(entries_, captured, stream);
  }

  // ---- kernels

  template <class Scalar>
  static DeviceTensor<Scalar> device_tensor(TensorView<Scalar> view) {
    return {view.data, view.token_stride, view.head_stride};
  }

  /// How large an attention is.
  struct AttendSize {
    std::int32_t entries = 0;
    std::int32_t most_tokens = 0;  // of an entry
    std::int32_t table_pages = 0;  // entries of all page tables, used or not

    void add(const Exact &exact, Index tokens) {
      ++entries;
      most_tokens = std::max(most_tokens, static_cast<std::int32_t>(tokens));
      table_pages += static_cast<std::int32_t>(exact.table_capacity());
    }
  };

  /// Room for attend_batch(). Captured graphs go on with the old one.
  void reserve_attend(const AttendSize &size, cudaStream_t stream) {
    const std::size_t bytes =
        attend_workspace_bytes(options_->head_dim, size.entries, options_->query_heads, kv_heads(),
                               size.most_tokens, size.table_pages);
    if (bytes <= attend_.bytes()) return;
    if (captured_) retired_.push_back(std::exchange(attend_, {}));
    grow(attend_, bytes, stream);
  }

  template <Element S>
  void attend_batch(const BatchEntry *batch, const AttendSize &size, TensorView<const S> q,
                    TensorView<S> out, cudaStream_t stream) const {
    AttendCall<S> call{};
    call.batch = batch;
    call.entries = size.entries;
    call.query_heads = options_->query_heads;
    call.kv_heads = kv_heads();
    call.scale = options_->attention_scale;
    call.codings = tables_.data();
    call.q = device_tensor(q);
    call.out = device_tensor(out);
    call.table_pages = size.table_pages;
    with_layout([&]<class Layout>() {
      launch_attend<Layout, T>(call, *options_->values, size.most_tokens, attend_.data(), stream);
    });
  }

  PackCall pack_call(const BatchEntry *batch, std::size_t entries, Index most_pages) const {
    return {.batch = batch,
            .entries = static_cast<int>(entries),
            .most_pages = static_cast<int>(most_pages),
            .kv_heads = kv_heads(),
            .residual = options_->residual,
            .codings = tables_.data(),
            .coding = *options_->coding,
            .fit = *options_->fit,
            .values = *options_->values};
  }

  void pack(const BatchEntry *batch, std::size_t entries, Index most_pages, cudaStream_t stream) const {
    const PackCall call = pack_call(batch, entries, most_pages);
    with_layout([&]<class Layout>() {
      launch_pack_keys<Layout, T>(call, stream);
      cuda::check(cudaGetLastError(), "packing of keys");
      launch_pack_values<Layout, T>(call, stream);
      cuda::check(cudaGetLastError(), "packing of values");
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

  std::unique_ptr<const Options> options_;  // codings refer to it
  std::size_t page_bytes_ = 0;
  std::size_t block_elements_ = 0;                     // of exact rows
  std::vector<std::unique_ptr<DeviceTiles>> tiles_;    // one, or one a layer
  std::vector<std::unique_ptr<LayerCoding>> codings_;  // by name
  DeviceBuffer<CodingTables> tables_;                  // likewise
  std::vector<BatchArrays> batches_;                   // of steps, a layer each
  BatchArrays reading_;                                // of attend()
  DeviceBuffer<BatchEntry> call_batch_;                // of a call that the host plans
  DeviceBuffer<std::byte> attend_;                     // workspace
  DeviceBuffer<std::uint16_t> scratch_;                // exact rows while a call lasts
  DeviceBuffer<std::byte> observing_;                  // workspace of statistics
  std::size_t scratch_used_ = 0;                       // by the call in progress
  DeviceBuffer<unsigned long long> first_bad_;
  DeviceBuffer<std::uint32_t> errors_;  // of steps
  bool captured_ = false;               // there are graphs that name buffers
  std::vector<DeviceBuffer<std::byte>> retired_;
  std::vector<DeviceBuffer<CodingTables>> retired_tables_;
  std::vector<Move> moves_;  // of the call in progress
  std::vector<BatchEntry> entries_;
  std::vector<Write<LayerState>> states_;
  std::vector<Write<PageEntry>> pages_;
  std::vector<PageEntry> table_entries_;
};

}  // namespace squat::cuda

namespace squat {

/// The CUDA backend, with kernels for some head_dims and groups. T of a cache is half or bfloat16;
/// tensors are in device memory; every call takes a stream.
template <class HeadDims, class Groups>
struct CudaOf {
  using Stream = cudaStream_t;
  template <class T, int KeyBits, int ValueBits>
  using Operations = cuda::Operations<T, KeyBits, ValueBits, HeadDims, Groups>;
};

/// Any group, a few head_dims: what is left out need not be compiled.
template <int... HeadDims>
using CudaFor = CudaOf<cuda::OneOf<HeadDims...>, cuda::OneOf<32, 64, 128>>;

using Cuda = CudaFor<64, 96, 128, 256>;

}  // namespace squat
