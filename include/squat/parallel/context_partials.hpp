#pragma once

// What attention to the parts of a split context comes to, handed to all ranks and merged.

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "squat/cache/attention_tensors.hpp"
#include "squat/cache/call.hpp"
#include "squat/cache/merge_attention.hpp"
#include "squat/core/config.hpp"
#include "squat/core/tensor.hpp"

namespace squat::detail {

/// Where partials stand: a block a part, those of a rank one after another, as many for every rank. In a
/// block lse, [rows, heads], then outputs, [rows, heads, value_dim].
struct PartialShape {
  Index rows = 0, heads = 0, value_dim = 0;
  std::size_t lse_bytes = 0, part_bytes = 0;
  int parts = 1, ranks = 1;

  template <Element S>
  static PartialShape of(Index rows, Index heads, Index value_dim, int parts, int ranks) {
    PartialShape shape{.rows = rows, .heads = heads, .value_dim = value_dim};
    const auto elements = static_cast<std::size_t>(rows * heads);
    shape.lse_bytes = aligned(elements * sizeof(float));
    shape.part_bytes =
        shape.lse_bytes + aligned(elements * static_cast<std::size_t>(value_dim) * sizeof(S));
    shape.parts = parts;
    shape.ranks = ranks;
    return shape;
  }

  SQUAT_HOST_DEVICE constexpr std::size_t rank_bytes() const {
    return static_cast<std::size_t>((parts + ranks - 1) / ranks) * part_bytes;
  }
  /// Where a part's block begins among those of all ranks.
  SQUAT_HOST_DEVICE constexpr std::size_t begin_of(int part) const {
    return static_cast<std::size_t>(part % ranks) * rank_bytes() +
           static_cast<std::size_t>(part / ranks) * part_bytes;
  }

  /// A call's tensors, with the block in the place of its results.
  template <Element S>
  AttentionTensors<S> in_block(std::byte *block, const AttentionTensors<S> &tensors) const {
    AttentionTensors<S> part = tensors;
    part.lse = {reinterpret_cast<float *>(block), rows, heads, 1};
    part.out = {reinterpret_cast<S *>(block + lse_bytes), rows, heads, value_dim};
    return part;
  }

 private:
  static constexpr std::size_t aligned(std::size_t bytes) {
    constexpr std::size_t unit = 16;  // of vectors of any backend
    return (bytes + unit - 1) / unit * unit;
  }
};

/// The partials of one call at a time, for caches whose calls take a Stream. gather() hands the
/// blocks of a rank to all, merge() makes outputs of them.
template <class Stream, class Transport>
class ContextPartials;

/// In the host's memory.
template <class Stream, class Transport>
requires std::is_empty_v<Stream>
class ContextPartials<Stream, Transport> {
 public:
  template <class Cache>
  ContextPartials(const Cache &cache, Transport &transport)
      : transport_(&transport), sink_logits_(cache.options().sink_logits) {}

  /// Whether ranks reach each other in a stream's turn.
  static constexpr bool gathers_on_stream = false;
  static constexpr bool is_capturing(Stream) { return false; }

  void reserve(const PartialShape &shape, Stream) {
    shape_ = shape;
    own_.resize(shape.rank_bytes());
    all_.resize(shape.ranks > 1 ? static_cast<std::size_t>(shape.ranks) * own_.size() : 0);
  }

  /// A call's tensors, with block `place` of this rank's in the place of its results.
  template <Element S>
  AttentionTensors<S> block(std::size_t place, const AttentionTensors<S> &tensors) {
    return shape_.in_block(own(place), tensors);
  }

  /// Its part has seen nothing.
  void clear(std::size_t place, Stream) {
    std::fill_n(reinterpret_cast<float *>(own(place)), shape_.rows * shape_.heads,
                -std::numeric_limits<float>::infinity());
  }

  void gather(Stream) {
    if (shape_.ranks > 1) transport_->all_gather(own_, all_);
  }

  /// Of some rows.
  template <Element S>
  void merge(int layer, TokenRange rows, TensorView<S> out, TensorView<float> lse, Stream) {
    std::vector<std::byte> &blocks = shape_.ranks > 1 ? all_ : own_;
    const Index count = rows.last - rows.first;
    std::vector<AttentionPart<S>> parts(static_cast<std::size_t>(shape_.parts));
    for (int part = 0; part < shape_.parts; ++part) {
      const auto found = shape_.in_block<S>(blocks.data() + shape_.begin_of(part), {});
      parts[static_cast<std::size_t>(part)] = {found.out.slice(rows.first, count),
                                               found.lse.slice(rows.first, count)};
    }
    merge_attention<S>(
        parts, out.slice(rows.first, count), lse.tokens > 0 ? lse.slice(rows.first, count) : lse,
        sink_logits_.empty() ? sink_logits_
                             : sink_logits_.subspan(static_cast<std::size_t>(layer * shape_.heads),
                                                    static_cast<std::size_t>(shape_.heads)));
  }

 private:
  std::byte *own(std::size_t place) { return own_.data() + place * shape_.part_bytes; }

  Transport *transport_;
  std::span<const float> sink_logits_;  // [layers, query_heads], or none
  PartialShape shape_;
  std::vector<std::byte> own_, all_;
};

}  // namespace squat::detail
