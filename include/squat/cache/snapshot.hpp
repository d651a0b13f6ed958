#pragma once

// Snapshots: sequences and codings as bytes, the same for every backend and instruction set.
//
// All numbers are little-endian; f16 is IEEE binary16, T the element type. A file begins with
//
//   8 bytes "squatsnp", u32 version = 1, u32 kind: 1 a sequence, 2 codings
//
// and goes on with sections: u32 section, u32 layer, u64 size of the payload; the payload; u32 CRC-32C
// (Castagnoli, reflected, initial and final xor ~0) of header and payload. In their order:
//
//   1 shape    u64 each, in the order of detail::shape_names; floats are their 32 bits, enumerations
//              count from 0 as declared, but codes are 2 where they are trellis codes: 1 were those of
//              another hash. element_type is 0 float, 1 half, 2 bfloat16, rotary is FNV-1a (64 bits)
//              over, a layer: u64 pairs (RotaryPairs), u64 how many, f32 each frequency
//   3 counts   a layer each, of a sequence alone: u64 sinks, u64 tail, u64 pages, i64 next position;
//   and,
//              where there are any, u64 tokens behind the sinks that have left an attention window
//   2 coding   a layer each: u64 fingerprint (FNV-1a, 64 bits, of the coding), u64 tokens observed while
//              it learns, then 0, u32 whether pages can be packed with it, u32 whether the coding
//              follows; the coding
//   then for each layer of a sequence
//   4 table    a page each: i64 base, i32 row, i32 first, i32 tokens (see PageView), u32 1 where it is
//              the page before it once more, of which other tokens count
//   5 rows     sinks, then tail, a token each: keys of all KV heads, then values. A row is head_dim
//              numbers of T; of a tail in bytes (tail = 1), head_dim i8 and an f16 step: rotated by the
//              Hadamard transform (coding/hadamard.hpp), element = i8 * step
//   6 pages    those that the table does not name once more, each of detail::page_record_bytes
//   7 end      empty
//
// A coding, "part" being u32 0 or 1, whether what is indented follows:
//
//   u32 learnt, u64 bytes of the codes of a page
//   part: heads share the bits of a page
//     u32 key width, u32 value width of pages that are not in the basis, f64 gain of values
//   part: f64 [kv_heads] weights of values, f64 square of outputs
//   a KV head each:
//     part: f32 [head_dim] mean key before its rotary embedding
//     part: f32 [head_dim] mean value, rotated as values are
//     part: basis: u32 1 bytes or 0 words; i16 [head_dim, head_dim] codes and f32 [head_dim] scales of
//     A^-T,
//       [coordinate, channel], of bytes also f32 [head_dim] scales of channels
//       (coding/rounded_matrix.hpp); f32 [head_dim] metric; f64 weight; part: f64 [head_dim] variances;
//       u32 number of runs, i32 bits and i32 channels each, of coordinates from the first on; u32 value
//       width of pages in the basis
//     part: orthogonal rounding: u32 block, i32 [head_dim] order, f32 feedback below the diagonal by
//     rows part: statistics: f64 and f32 sums as HeadSums orders them, u64 keys of the group that fills,
//     f32
//       [head_dim] least and f32 [head_dim] largest of it
//
// A page of G tokens:
//
//   a KV head each, its parameters: key zeros and key scales, f16 [head_dim] each, unless keys have 16
//     bits; the sign of the first scale says that keys are coordinates in the basis, that of the second
//     that codes of up to 3 bits are trellis codes, that of the third that values are coded about their
//     mean. Value scales f16 [scales, G], and zeros likewise of
//     plain values, unless values have 16 bits
//   then the codes, as many bytes as the coding says: head by head keys, then values. Without shared
//   bits
//     each head's begin where those of the same width in all channels would; in pages that share bits,
//     each right behind the one before. Between them are zeros
//   keys: the runs of the allocation one behind the other, lanes are tokens and inner indices channels;
//     values: lanes are channels, inner indices tokens, in the layout of coding/codes.hpp, of trellis
//     codes that of coding/trellis_layout.hpp. 16-bit ones are [G, head_dim] rows
//
// What codes stand for: key = zero + scale * code of its channel, into which A^-1 turns coordinates; the
// mean key, turned to the row of its tile, is added, and all is turned by the page's base. Symmetric
// value = scale * (code - middle), to which the mean value may be added; all is rotated back.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "squat/cache/layer_pages.hpp"
#include "squat/cache/learning.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/sequence.hpp"
#include "squat/cache/snapshot/adoption.hpp"
#include "squat/cache/snapshot/coding_section.hpp"
#include "squat/cache/snapshot/records.hpp"
#include "squat/cache/snapshot/sections.hpp"
#include "squat/cache/snapshot/shape.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/coding/query_statistics.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::detail::inline SQUAT_API_NAMESPACE {

/// Writes and reads the parts of a cache. T: of its exact rows.
template <class T, class Operations, class Stream>
class Snapshots {
 public:
  using Exact = typename Operations::Exact;
  using Layer = LayerTokens<Exact>;
  using Pages = LayerPages<typename Operations::Memory, Exact>;

  Snapshots(const Options &options, const SnapshotShape &shape, Operations &operations, Pages &pages,
            Learning &learning, Stream stream)
      : options_(options),
        shape_(shape),
        operations_(operations),
        pages_(pages),
        learning_(learning),
        stream_(stream),
        sizes_(sizes_of(options)) {}

  // ---- writing

  void write_shape(SnapshotWriter &out) const { out.section(Section::shape, 0, bytes_of(shape_)); }

  void write_counts(SnapshotWriter &out, const Layer &layer) const {
    const LayerCounts counts{static_cast<std::uint64_t>(layer.exact.sinks()),
                             static_cast<std::uint64_t>(layer.exact.tail()), layer.pages.size(),
                             layer.next_position, static_cast<std::uint64_t>(layer.left())};
    out.section(Section::counts, index(layer), bytes_of(counts).first(bytes_of_counts(counts.left)));
  }

  void write_coding(SnapshotWriter &out, Index coding, int layer, bool with_coding) const {
    const std::vector<std::byte> bytes = own_bytes(coding);
    CodingHeader header = header_of(coding, bytes);
    header.present = with_coding ? 1 : 0;
    write_coding_section(out, layer, header,
                         with_coding ? std::span(bytes) : std::span<const std::byte>());
  }

  void write_tokens(SnapshotWriter &out, Layer &layer) const {
    std::vector<PageView> distinct;
    out.begin(Section::table, index(layer), layer.pages.size() * sizeof(TableRecord));
    for (std::size_t i = 0; i < layer.pages.size(); ++i) {
      const PageView &view = layer.page_views[i];
      const bool again = i > 0 && layer.pages[i] == layer.pages[i - 1];
      if (!again) distinct.push_back(view);
      const TableRecord record{view.base, static_cast<std::int32_t>(view.row),
                               static_cast<std::int32_t>(view.first),
                               static_cast<std::int32_t>(view.tokens), again ? 1u : 0u};
      out.write(bytes_of(record));
    }
    out.end();
    const std::uint64_t sink_bytes = static_cast<std::uint64_t>(layer.exact.sinks()) * row_bytes(false);
    out.begin(Section::rows, index(layer),
              sink_bytes + static_cast<std::uint64_t>(layer.exact.tail()) * row_bytes(true));
    std::vector<std::byte> piece;
    for (const bool of_tail : {false, true}) {
      const auto rows = static_cast<std::size_t>(of_tail ? layer.exact.tail() : layer.exact.sinks());
      for_each_piece(rows, row_bytes(of_tail), [&](std::size_t first, std::size_t count) {
        piece.resize(count * row_bytes(of_tail));
        operations_.write_rows(layer.exact, of_tail, static_cast<Index>(first),
                               static_cast<Index>(count), piece.data(), stream_);
        out.write(piece);
      });
    }
    out.end();
    const std::size_t page_bytes = operations_.page_record_bytes(layer.coding);
    out.begin(Section::pages, index(layer), distinct.size() * page_bytes);
    for_each_piece(distinct.size(), page_bytes, [&](std::size_t first, std::size_t count) {
      piece.resize(count * page_bytes);
      operations_.write_pages(layer.coding, std::span(distinct).subspan(first, count), piece.data(),
                              stream_);
      out.write(piece);
    });
    out.end();
  }

  // ---- reading

  /// Returns what the snapshot says of the options, once it fits the cache's.
  SnapshotShape read_shape(SnapshotReader &in) const {
    SnapshotShape found{};
    in.section(Section::shape, 0, bytes_to(found));
    check_shape_of_snapshot(found, shape_, 0, statistics_tokens_of_shape);
    return found;
  }

  LayerCounts read_counts(SnapshotReader &in, int layer) const {
    const LayerCounts counts = read_counts_section(in, layer);
    const auto check = [](const char *name, std::uint64_t value, std::uint64_t most) {
      if (value > most) throw_invalid(std::string("snapshot.") + name, value, "at most", most);
    };
    check("sinks", counts.sinks, static_cast<std::uint64_t>(options_.sinks));
    check("tail", counts.tail, most_count);
    check("pages", counts.pages, std::min<std::uint64_t>(most_count, options_.max_pages));
    check("left", counts.left,
          counts.pages > 0 && options_.attention_window > 0 ? most_count : std::uint64_t{0});
    if (counts.next_position < -farthest || counts.next_position > farthest)
      throw_invalid("snapshot.next_position", counts.next_position, "of magnitude at most", farthest);
    return counts;
  }

  /// A coding as it was found.
  struct FoundCoding {
    CodingHeader header;
    std::vector<std::byte> bytes;
    int layer;
    bool learnt_nothing;  // and never will
  };

  FoundCoding read_coding(SnapshotReader &in, int layer) const {
    auto [header, bytes] = read_coding_section(in, layer, sizes_);
    const bool learnt_nothing = header.ready == 1 && header.present == 1 && learning_.learns_at_all() &&
                                !coding_record(bytes, sizes_).knows_anything();
    return {header, std::move(bytes), layer, learnt_nothing};
  }

  /// Whether it is one of the cache's that has learnt.
  bool is_same(const FoundCoding &found, Index coding) const {
    return found.header.ready == 1 && learning_.learnt(coding) &&
           found.header.fingerprint == coding_fingerprint(own_bytes(coding));
  }

  /// What becomes of it where the cache has `coding`, see adoption.hpp.
  Adoption adoption_of(const FoundCoding &found, Index coding, bool needed, bool beside) const {
    return adoption(found.header, own_coding(coding), needed, found.learnt_nothing, beside,
                    std::to_string(found.layer));
  }

  /// Makes it `coding`. shape: of the snapshot. Throws Error for one that cannot be.
  void adopt(const FoundCoding &found, const SnapshotShape &shape, Index coding) const {
    const CodingHeader &header = found.header;
    const CodingRecord record = coding_record(found.bytes, sizes_);
    learning_.check_adopted(record.learnt, header.ready == 1,
                            static_cast<Index>(std::min<std::uint64_t>(header.observed, most_count)));
    if (header.ready == 0) {
      check_shape_of_snapshot(shape, shape_, statistics_tokens_of_shape, shape.size());
    }
    operations_.adopt_coding(coding, record, stream_);
    learning_.adopt(coding, header.ready == 1, static_cast<Index>(header.observed));
    pages_.set_page_bytes(coding, operations_.page_bytes(coding));
  }

  /// Reads the tokens of a layer into an empty one, whose coding is there. make_room(count): makes sure
  /// of so many pages. Where it throws, the pages that are there are the layer's.
  template <class MakeRoom>
  void read_tokens(SnapshotReader &in, Layer &layer, const LayerCounts &counts,
                   MakeRoom &&make_room) const {
    const std::vector<TableRecord> table = read_table(in, layer, counts);
    const std::uint64_t sink_bytes = counts.sinks * row_bytes(false);
    const std::uint64_t rows_bytes = sink_bytes + counts.tail * row_bytes(true);
    in.begin(Section::rows, index(layer), rows_bytes, rows_bytes);
    std::vector<std::byte> piece;
    for (const bool of_tail : {false, true}) {
      const std::uint64_t rows = of_tail ? counts.tail : counts.sinks;
      if (of_tail && rows == 0 && counts.pages > 0)  // pages alone
        operations_.read_rows(layer.exact, of_tail, 0, 0, nullptr, stream_);
      for_each_piece(rows, row_bytes(of_tail), [&](std::size_t, std::size_t count) {
        piece.resize(count * row_bytes(of_tail));
        in.read(piece);
        operations_.read_rows(layer.exact, of_tail, static_cast<Index>(count), static_cast<Index>(rows),
                              piece.data(), stream_);
      });
    }
    in.end();
    const auto distinct = static_cast<std::size_t>(
        std::count_if(table.begin(), table.end(), [](const auto &record) { return record.again == 0; }));
    if (distinct > 0 && !learning_.learnt(layer.coding))
      throw Error("squat: snapshot holds pages of a coding that has not learnt yet");
    const std::size_t page_bytes = operations_.page_record_bytes(layer.coding);
    in.begin(Section::pages, index(layer), distinct * page_bytes, distinct * page_bytes);
    auto next = table.begin();
    std::vector<PageView> views;
    for_each_piece(distinct, page_bytes, [&](std::size_t, std::size_t count) {
      piece.resize(count * page_bytes);
      in.read(piece);
      make_room(count);
      views.clear();
      for (; next != table.end() && (views.size() < count || next->again == 1); ++next) {
        layer.reserve_pages(1);
        const PageView &added = pages_.restore(layer, view_of(*next), next->again == 1);
        if (next->again == 0) views.push_back(added);
      }
      operations_.read_pages(layer.coding, views, piece.data(), stream_);
    });
    in.end();
    layer.count_pages(layer.exact.sinks() + static_cast<Index>(counts.left));
    layer.next_position = counts.next_position;
  }

  void read_end(SnapshotReader &in) const { in.section(Section::end, 0, {}); }

 private:
  static constexpr std::uint64_t most_count = std::uint64_t{1} << 31;
  static constexpr std::int64_t farthest = std::int64_t{1} << 40;

  template <class Value>
  static std::span<const std::byte> bytes_of(const Value &value) {
    return std::as_bytes(std::span(&value, 1));
  }
  template <class Value>
  static std::span<std::byte> bytes_to(Value &value) {
    return std::as_writable_bytes(std::span(&value, 1));
  }
  static std::size_t index(const Layer &layer) { return static_cast<std::size_t>(layer.layer); }

  static CodingSizes sizes_of(const Options &options) {
    const HeadSums sums{options.head_dim, std::max(1, *options.tile_tokens)};
    return {static_cast<std::size_t>(options.kv_heads), static_cast<std::size_t>(options.head_dim),
            static_cast<std::size_t>(sums.doubles), static_cast<std::size_t>(sums.floats)};
  }

  /// Of a token's keys and values.
  std::size_t row_bytes(bool of_tail) const {
    const auto d = static_cast<std::size_t>(options_.head_dim);
    const bool in_bytes = of_tail && options_.tail == TailCoding::int8;
    return 2 * static_cast<std::size_t>(options_.kv_heads) *
           (in_bytes ? d + sizeof(half) : d * sizeof(T));
  }

  std::vector<std::byte> own_bytes(Index coding) const {
    return coding_bytes(operations_.record_coding(coding, stream_), sizes_);
  }

  CodingHeader header_of(Index coding, std::span<const std::byte> bytes) const {
    CodingHeader header;
    header.fingerprint = coding_fingerprint(bytes);
    header.ready = learning_.learnt(coding) ? 1 : 0;
    if (header.ready == 0)
      header.observed = static_cast<std::uint64_t>(learning_.observed_to_learn(coding));
    return header;
  }

  OwnCoding own_coding(Index coding) const {
    const std::vector<std::byte> bytes = own_bytes(coding);
    return {learning_.learnt(coding), std::as_const(learning_).observed(coding) == 0,
            coding_fingerprint(bytes)};
  }

  std::vector<TableRecord> read_table(SnapshotReader &in, const Layer &layer,
                                      const LayerCounts &counts) const {
    std::vector<TableRecord> table;
    const std::uint64_t size = counts.pages * sizeof(TableRecord);
    in.begin(Section::table, index(layer), size, size);
    for_each_piece(counts.pages, sizeof(TableRecord), [&](std::size_t first, std::size_t count) {
      table.resize(first + count);
      in.read(std::as_writable_bytes(std::span(table).subspan(first, count)));
    });
    in.end();
    for (std::size_t i = 0; i < table.size(); ++i) check_record(table[i], i == 0);
    return table;
  }

  void check_record(const TableRecord &record, bool is_first) const {
    const auto require = [](bool holds, const char *what) {
      if (!holds) throw Error(std::string("squat: snapshot.table is impossible: ") + what);
    };
    const std::int32_t tokens = options_.page_tokens, tile = *options_.tile_tokens;
    require(record.again == 0 || (record.again == 1 && !is_first), "a page that is not there once more");
    require(record.first >= 0 && record.first < tokens, "the first token that counts");
    require(record.tokens > 0 && record.tokens <= tokens - record.first, "the tokens that count");
    require(record.base >= -farthest && record.base <= farthest, "base");
    require(record.base == 0 || !options_.rotary.empty(), "a base without a rotary table");
    require(record.row >= 0 && record.row % tokens == 0 && record.row <= std::max(0, tile - tokens),
            "row of the tile");
  }

  static PageView view_of(const TableRecord &record) {
    PageView view;
    view.base = static_cast<Index>(record.base);
    view.row = record.row;
    view.first = record.first;
    view.tokens = record.tokens;
    return view;
  }

  const Options &options_;
  const SnapshotShape &shape_;
  Operations &operations_;
  Pages &pages_;
  Learning &learning_;
  Stream stream_;
  CodingSizes sizes_;
};

}  // namespace squat::detail::inline SQUAT_API_NAMESPACE
