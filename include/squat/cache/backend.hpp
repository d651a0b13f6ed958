#pragma once

// What KVCache asks of a backend. Everything else (sequences, pages, the tail rule,
// sinks, truncation, errors) lives above it, once.

#include <concepts>
#include <cstddef>
#include <initializer_list>
#include <span>

#include "squat/cache/call.hpp"
#include "squat/cache/options.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/coding/prior.hpp"
#include "squat/core/config.hpp"
#include "squat/core/element_range.hpp"
#include "squat/core/tensor.hpp"

namespace squat {

/// The operations of one backend for one T and pair of widths. They check
/// nothing: KVCache did. A Stream names what a call's work is ordered by; on
/// the CPU it is empty.
///
/// - page_bytes(coding): bytes of a page of its layer, all KV heads: fixed once the coding is learnt,
/// and under Allocation::model those of all layers. Of none, -1, while layers have not learnt. Memory(n)
/// owns n bytes that pages can live in.
/// - Exact: a sequence's sinks and tail in one layer: sinks(), tail(), bytes(), truncate(sinks, tail).
/// shift: drops some of them and turns what follows.
/// swap_tokens: swaps all of them with another store's.
/// - reserve_copies: memory in empty stores for what copy() puts there. copy: fills them with the first
/// tokens of others. Must not fail.
/// - padded_head_dim: of kernels that take heads of so many channels. Padding: rows(place, sized) is
/// memory for a call's rows in one of 4 places, copy() takes over the channels that two tensors both
/// have, with zeros in what else the second has. bytes().
/// - check_elements: throws Error for the first element out of range.
/// - add_coding, remove_coding: what a layer learns, named by a number. observe: adds some tokens of a
/// call to its coding's statistics, before the call's rows are anywhere; observe_may_fail(tokens): with
/// so many it can throw behind reserve(), and what it has added then is undone by restore(). learn:
/// makes the codings of them, or of the prior where there are none; under Allocation::model, where these
/// were the last, it gives layers their page sizes. Returns false where they are of no text
/// (coding/evidence.hpp): the coding begins anew. learn_nothing: fixes a coding that was just added,
/// keys plain in their frame and values about no mean. forget: makes a coding what it was when added.
/// add_statistics: adds what it holds to a Prior, false if it is gone. back_up, restore: what a coding
/// was, for a call in which learning fails; restore must not fail.
/// - reserve: all memory that a call needs, of observe too; throws before anything changes. It is told
/// whether the call attends.
/// - append: attends to what is cached and to the call's own rows, unless `out` is empty; packs what
/// became due; keeps the other rows exact. Calls may all have no rows, and pages due, of tails
/// whole as they are (KVCache::pack()). Must not fail, but where the engine's threads do: then it
/// throws what they threw, and nothing has changed but outputs and what due pages hold.
/// - attend: the same for calls that only read; a call of its own, with its memory. It checks q's
/// elements, unless that would make it wait for a device. dequantize: what attention sees, as rows.
/// - record_coding, adopt_coding: a coding as every backend reads it; adopt_coding throws Error for an
/// impossible one, and leaves restore() to the caller. write_pages, read_pages: pages of one coding as
/// snapshots keep them (snapshot.hpp), page_record_bytes(coding) each. write_rows, read_rows: exact rows
/// likewise; read_rows adds to sinks or tail, which will hold `expected`. All of these are done when
/// they return, and what reads throws Error for what cannot be.
/// - *_bytes(): what is allocated.
template <class Operations, class T, class Stream>
concept BackendOperations = requires(Operations operations, const Operations constant, Index index,
                                     int layer, Stream stream, TensorView<const float> in,
                                     TensorView<float> out, AttentionOutput<float> found,
                                     TokenRange range, Prior &prior,
                                     std::initializer_list<NamedTensor<float>> tensors,
                                     std::span<const SequenceCall<typename Operations::Exact>> calls,
                                     std::span<const ExactCopy<typename Operations::Exact>> copies,
                                     const SequenceCall<typename Operations::Exact> &call,
                                     typename Operations::Exact &exact, const CodingRecord &record,
                                     std::span<const PageView> pages, std::byte *to,
                                     const std::byte *from, bool flag) {
  typename Operations::Memory;
  typename Operations::Backup;
  typename Operations::Padding;
  { Operations::padded_head_dim(layer) } -> std::same_as<int>;
  { constant.observe_may_fail(index) } -> std::same_as<bool>;
  { constant.page_bytes(index) } -> std::same_as<std::size_t>;
  operations.shift(index, exact, range, range, index, stream);
  exact.swap_tokens(exact);
  operations.reserve_copies(copies);
  operations.copy(copies, stream);
  operations.check_elements(tensors, stream);
  { operations.add_coding(layer) } -> std::same_as<Index>;
  operations.remove_coding(index);
  operations.observe(call, in, in, in, index, index, stream);
  { operations.learn(index, stream) } -> std::same_as<bool>;
  operations.learn_nothing(index, stream);
  operations.forget(index, stream);
  { constant.add_statistics(index, prior) } -> std::same_as<bool>;
  operations.restore(index, operations.back_up(index, stream));
  operations.reserve(calls, true, stream);
  operations.append(calls, in, in, in, found, stream);
  operations.attend(calls, in, found, stream);
  operations.dequantize(call, out, out, stream);
  { constant.record_coding(index, stream) } -> std::same_as<CodingRecord>;
  operations.adopt_coding(index, record, stream);
  { constant.page_record_bytes(index) } -> std::same_as<std::size_t>;
  operations.write_pages(index, pages, to, stream);
  operations.read_pages(index, pages, from, stream);
  operations.write_rows(exact, flag, index, index, to, stream);
  operations.read_rows(exact, flag, index, index, from, stream);
  { constant.statistics_bytes() } -> std::same_as<std::size_t>;
  { constant.bases_bytes() } -> std::same_as<std::size_t>;
  { constant.workspace_bytes() } -> std::same_as<std::size_t>;
};

/// A backend that knows drafts: as attend, to what is cached and to the paths of the call's own rows
/// (SequenceCall::draft).
template <class Operations, class Stream>
concept DraftingOperations = requires(Operations operations,
                                      std::span<const SequenceCall<typename Operations::Exact>> calls,
                                      TensorView<const float> in, AttentionOutput<float> found,
                                      Stream stream) {
  operations.template draft<float>(calls, in, in, in, found, stream);
};

/// A backend on one of several devices: that which is current when it is made.
///
/// - device: its number. enter: makes it current for as long as what is returned lives; throws Error for
/// a stream of another. check_memory: throws Error for a tensor `name` in memory of another.
template <class Operations, class Stream>
concept DeviceOperations = requires(const Operations constant, Stream stream, const char *name,
                                    const void *data) {
  { constant.device() } -> std::same_as<int>;
  constant.enter(stream);
  constant.check_memory(name, data);
};

/// A backend whose kernels take decode steps (a token a sequence, all else in
/// its place) on their own: they count tokens and pack into a page that was
/// acquired ahead, so that a captured graph of a step can be replayed. The host
/// counts along, see replay.hpp.
///
/// - can_step: whether the next token finds its place. step: appends, attends (unless
/// there are no queries to answer) and packs what is due. capturing: whether the stream records instead
/// of working.
/// - Exact: count() and drop(tokens) note what the kernels did; room() is what the tail has left;
/// outgrown(): a captured step does not hold any more.
/// - publish: tells the kernels of layers that changed outside a call, publish_next_page of pages
/// acquired ahead. reserve_pages: what either needs for so many pages. reserve_shift: what shift does.
/// - publish_states: the same as publish for layers whose page tables copy() has written, or which have
/// taken tokens by swap_tokens(). What kernels know a sequence by stays through that, so that captured
/// steps find its new tokens. reserve_state: makes it where it is not there.
/// - check: throws Error for what kernels have met since.
template <class Operations, class Stream>
concept ReplayableOperations = requires(Operations operations, const Operations constant,
                                        typename Operations::Exact &exact,
                                        std::span<const SequenceCall<typename Operations::Exact>> calls,
                                        Stream stream, int layer, bool due, std::size_t pages,
                                        TensorView<const float> in, AttentionOutput<float> found) {
  { constant.can_step(exact) } -> std::same_as<bool>;
  operations.step(calls, layer, due, in, in, in, found, stream);
  { constant.capturing(stream) } -> std::same_as<bool>;
  operations.publish(calls, stream);
  operations.publish_next_page(calls, stream);
  operations.reserve_pages(exact, pages, stream);
  operations.reserve_shift(exact, stream);
  operations.reserve_state(exact);
  operations.publish_states(calls, stream);
  constant.check(stream);
};

}  // namespace squat
