#pragma once

// What KVCache asks of a backend. Everything else (sequences, pages, window,
// sinks, truncation, errors) lives above it, once.

#include <concepts>
#include <cstddef>
#include <span>

#include "squat/attention/context.hpp"
#include "squat/config.hpp"
#include "squat/options.hpp"
#include "squat/tensor.hpp"

namespace squat {

/// The operations of one backend for one T and pair of widths. They check
/// nothing: KVCache did.
///
/// - page_bytes(): bytes of a page, all its KV heads. Memory(n) owns n bytes
/// that pages can live in.
/// - make_rows(capacity): a store of exact rows, see cpu/row_store.hpp for its
/// small interface.
/// - turn: exact rows moved by some positions.
/// - add_coding, remove_coding: what a layer learns, named by a number. observe, learn: its statistics
/// and the codings made of them. add_statistics: adds what it holds to a Prior, false if it is gone.
/// - reserve_pack, pack: exact rows into pages; pack() itself must not fail.
/// - attend: a batch of jobs. dequantize: what attention sees, as rows.
/// - *_bytes(): what is allocated.
template <class Operations, class T>
concept BackendOperations = std::constructible_from<Operations, const Options &> &&
    requires(Operations operations, const Operations constant, Index index, int layer,
             std::span<const PageView> pages, ExactRows<T> rows, TensorView<const float> in,
             TensorView<float> out, std::span<const SequenceJob<T>> jobs, const Context<T> &context,
             Prior &prior, typename Operations::Rows &operations_rows) {
  typename Operations::Memory;
  { constant.page_bytes() } -> std::same_as<std::size_t>;
  { constant.make_rows(index) } -> std::same_as<typename Operations::Rows>;
  operations.turn(index, operations_rows, index, index);
  { operations.add_coding(layer) } -> std::same_as<Index>;
  operations.remove_coding(index);
  operations.observe(index, in, in, index, index, index, index);
  operations.learn(index);
  { constant.add_statistics(index, prior) } -> std::same_as<bool>;
  operations.reserve_pack(index);
  operations.pack(index, pages, rows, in, in, index);
  operations.attend(jobs, in, in, in, out);
  operations.dequantize(index, context, out, out);
  { constant.statistics_bytes() } -> std::same_as<std::size_t>;
  { constant.bases_bytes() } -> std::same_as<std::size_t>;
  { constant.workspace_bytes() } -> std::same_as<std::size_t>;
};

}  // namespace squat
