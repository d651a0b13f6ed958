#pragma once

// Tensor parallelism: the KV heads of a model split over ranks, each of which has an ordinary cache of
// its own heads and the query heads that share them.
//
// Heads know nothing of each other: what a rank's cache computes, learns and packs for its heads is, bit
// for bit, what one cache of all heads would (Allocation::head). Two things are decided over all heads
// together, and may come out otherwise where a rank sees only its own: whether tokens were text
// (Options::statistics_tokens), and, under Allocation::layer and Allocation::model, how heads share the
// bits of a page, for which reason these are refused here.
//
// What one cache, or one number of ranks, has saved, another loads: join_heads() and slice_heads() make
// snapshots of other heads from those that there are, as streams and without a cache.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "squat/cache/check.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/snapshot/coding_section.hpp"
#include "squat/cache/snapshot/records.hpp"
#include "squat/cache/snapshot/sections.hpp"
#include "squat/cache/snapshot/shape.hpp"
#include "squat/cache/snapshot/streams.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/coding/prior.hpp"
#include "squat/coding/query_statistics.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/cpu/page_layout.hpp"

namespace squat {

/// Neighbouring KV heads.
struct HeadRange {
  int first = 0;  ///< counted from 0
  int count = 0;  ///< at least 1
};

}  // namespace squat

namespace squat::detail {

/// Throws Error for heads that are not there.
inline void check_heads(HeadRange heads, Index kv_heads) {
  if (heads.first < 0 || heads.first >= kv_heads)
    throw_invalid("heads.first", heads.first, "0 to one less than kv_heads, which is", kv_heads);
  if (heads.count < 1 || heads.count > kv_heads - heads.first)
    throw_invalid("heads.count", heads.count, "at least 1 and at most the heads from first on,",
                  kv_heads - heads.first);
}

}  // namespace squat::detail

namespace squat::inline SQUAT_API_NAMESPACE {

/// Options of a cache of some of the heads: as many KV heads, the query heads that share them, and what
/// options say of these heads. Throws Error for heads that are not there, and where heads share bits.
inline Options options_of_heads(const Options &options, HeadRange heads) {
  detail::check_heads(heads, options.kv_heads);
  if (options.allocation.value_or(Allocation::head) != Allocation::head)
    throw_invalid("allocation", name_of(*options.allocation), "head where heads are split over ranks");
  const int shared = options.query_heads / options.kv_heads;
  Options part = options;
  part.kv_heads = heads.count;
  part.query_heads = heads.count * shared;
  // Of [query_heads], or of as many for each layer.
  const auto slice = [&](const std::vector<float> &all) {
    std::vector<float> kept;
    for (std::size_t head = 0; head < all.size(); ++head) {
      const int of_layer = static_cast<int>(head) % options.query_heads / shared;
      if (of_layer >= heads.first && of_layer < heads.first + heads.count) kept.push_back(all[head]);
    }
    return kept;
  };
  part.alibi_slopes = slice(options.alibi_slopes);
  part.sink_logits = slice(options.sink_logits);
  if (options.prior)
    part.prior = std::make_shared<Prior>(options.prior->heads(heads.first, heads.count));
  return part;
}

}  // namespace squat::inline SQUAT_API_NAMESPACE

namespace squat::detail::inline SQUAT_CPU_NAMESPACE {

/// Reads snapshots of the heads of a model, and writes one of some of them. The parts are of the same
/// tokens and of heads that follow one another; all memory it takes is a coding of each and pieces of
/// some 1 MiB.
class HeadSnapshots {
 public:
  /// Reads the shapes.
  explicit HeadSnapshots(std::vector<SnapshotReader> parts) : parts_(std::move(parts)) {
    if (parts_.empty()) throw_invalid("parts.size", 0, "at least 1");
    if (kind() != SnapshotKind::sequence && kind() != SnapshotKind::codings)
      throw Error("squat: snapshot is neither of a sequence nor of codings");
    for (SnapshotReader &part : parts_) {
      if (part.kind() != kind()) throw Error("squat: parts are snapshots of two kinds");
      SnapshotShape shape{};
      part.section(Section::shape, 0, std::as_writable_bytes(std::span(shape)));
      if (heads_.empty()) {
        shape_ = shape;
        check_shape();
      }
      add_heads(shape);
    }
  }

  SnapshotKind kind() const { return parts_.front().kind(); }
  Index kv_heads() const { return kv_heads_; }

  /// Writes those heads, which are there.
  void write(HeadRange heads, SnapshotWriter &out) {
    range_ = heads;
    SnapshotShape shape = shape_;
    number(shape, "query_heads") = static_cast<std::uint64_t>(heads.count) * shared_;
    number(shape, "kv_heads") = static_cast<std::uint64_t>(heads.count);
    out.section(Section::shape, 0, std::as_bytes(std::span(shape)));
    const auto layers = static_cast<int>(number(shape_, "layers"));
    if (kind() == SnapshotKind::codings) {
      for (int layer = 0; layer < layers; ++layer) write_coding(layer, out);
    } else {
      std::vector<LayerCounts> counts;
      for (int layer = 0; layer < layers; ++layer) counts.push_back(write_counts(layer, out));
      for (int layer = 0; layer < layers; ++layer) write_coding(layer, out);
      for (int layer = 0; layer < layers; ++layer)
        write_tokens(layer, counts[static_cast<std::size_t>(layer)], out);
    }
    for (SnapshotReader &part : parts_) part.section(Section::end, 0, {});
    out.section(Section::end, 0, {});
  }

 private:
  /// Of a part.
  struct Heads {
    Index first;  // among all
    Index count;
  };

  static std::uint64_t &number(SnapshotShape &shape, std::string_view name) {
    const auto found = std::find(shape_names.begin(), shape_names.end(), name);
    return shape[static_cast<std::size_t>(found - shape_names.begin())];
  }

  std::uint64_t check(std::string_view name, std::uint64_t least, std::uint64_t most) {
    const std::uint64_t value = number(shape_, name);
    if (value < least || value > most)
      throw_invalid("snapshot." + std::string(name), value,
                    std::to_string(least) + " to " + std::to_string(most));
    return value;
  }

  /// What sizes of sections depend on must be such as a cache writes.
  void check_shape() {
    constexpr std::uint64_t most = 1 << 20;
    check("layers", 1, most);
    const std::uint64_t heads = check("kv_heads", 1, most), queries = check("query_heads", heads, most);
    shared_ = queries / heads;
    if (check("allocation", 0, 2) != static_cast<std::uint64_t>(Allocation::head))
      throw Error("squat: snapshot.allocation is layer or model, whose heads share the bits of a page");
    Options options;  // of one head
    options.kv_heads = 1;
    options.head_dim = static_cast<int>(check("head_dim", 8, largest_head_dim));
    options.page_tokens = static_cast<int>(check("page_tokens", 16, 1024));
    options.values = ValueCoding{static_cast<int>(check("values", 0, 1))};
    options.codes = codes_of_number(number(shape_, "codes"));
    const auto tile = static_cast<Index>(check("tile_tokens", 0, checks::largest_tile_tokens));
    const auto check_bits = [&](std::string_view name) {
      const std::uint64_t bits = check(name, 2, 16);
      if (bits > 4 && bits != 8 && bits != 16)
        throw_invalid("snapshot." + std::string(name), bits, "2, 3, 4, 8 or 16");
      return static_cast<int>(bits);
    };
    const int key_bits = check_bits("key_bits"), value_bits = check_bits("value_bits");
    const cpu::PageLayout layout(options, key_bits, value_bits);
    parameter_bytes_ = layout.parameter_bytes();
    code_bytes_ = layout.code_bytes();
    const auto d = static_cast<std::size_t>(options.head_dim);
    sink_bytes_ = d * (check("element_type", 0, 2) == element_number<float>() ? sizeof(float) : 2);
    tail_bytes_ = check("tail", 0, 1) == static_cast<std::uint64_t>(TailCoding::int8) ? d + sizeof(half)
                                                                                      : sink_bytes_;
    const HeadSums sums{options.head_dim, std::max<Index>(1, tile)};
    sizes_ = {0, d, static_cast<std::size_t>(sums.doubles), static_cast<std::size_t>(sums.floats)};
  }

  /// The next part's, whose shape must be that of the first but for the heads.
  void add_heads(SnapshotShape shape) {
    const std::uint64_t heads = number(shape, "kv_heads"), queries = number(shape, "query_heads");
    if (heads < 1 || heads > (1 << 20) || queries != heads * shared_)
      throw_invalid("parts.kv_heads", heads, "as many query heads each as in the first part,", shared_);
    number(shape, "kv_heads") = number(shape_, "kv_heads");
    number(shape, "query_heads") = number(shape_, "query_heads");
    check_shape_of_snapshot(shape, shape_, 0, shape.size());
    heads_.push_back({kv_heads_, static_cast<Index>(heads)});
    kv_heads_ += static_cast<Index>(heads);
  }

  static void require_same(bool same, int layer, const char *what) {
    if (!same)
      throw Error("squat: parts differ in layer " + std::to_string(layer) + " in " + what +
                  ": they are not of the same tokens");
  }

  LayerCounts write_counts(int layer, SnapshotWriter &out) {
    constexpr std::uint64_t most = std::uint64_t{1} << 31;
    LayerCounts counts{};
    for (SnapshotReader &part : parts_) {
      const LayerCounts found = read_counts_section(part, layer);
      if (&part == &parts_.front()) counts = found;
      require_same(found == counts, layer, "their counts");
    }
    if (std::max({counts.sinks, counts.tail, counts.pages, counts.left}) > most)
      throw_damaged(Section::counts, "it counts more tokens than there can be");
    out.section(Section::counts, static_cast<std::size_t>(layer),
                std::as_bytes(std::span(&counts, 1)).first(bytes_of_counts(counts.left)));
    return counts;
  }

  void write_coding(int layer, SnapshotWriter &out) {
    CodingRecord record;
    CodingHeader header;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      CodingSizes sizes = sizes_;
      sizes.kv_heads = static_cast<std::size_t>(heads_[i].count);
      const CodingSection found = read_coding_section(parts_[i], layer, sizes);
      if (found.header.present == 0)
        throw Error("squat: snapshot was saved without codings, whose heads cannot be told apart then");
      CodingRecord part = coding_record(found.bytes, sizes);
      if (part.shared || !part.value_weights.empty() || part.code_bytes != sizes.kv_heads * code_bytes_)
        throw_damaged(Section::coding, "heads share the bits of a page");
      if (i == 0) {
        header = found.header;
        record.learnt = part.learnt;
      }
      require_same(found.header.ready == header.ready && found.header.observed == header.observed &&
                       part.learnt == record.learnt,
                   layer, "how far their coding has come");
      const auto [first, count] = kept(i);
      std::move(part.heads.begin() + first, part.heads.begin() + first + count,
                std::back_inserter(record.heads));
    }
    CodingSizes sizes = sizes_;
    sizes.kv_heads = record.heads.size();
    record.code_bytes = record.heads.size() * code_bytes_;
    const std::vector<std::byte> bytes = coding_bytes(record, sizes);
    header.fingerprint = coding_fingerprint(bytes);
    write_coding_section(out, layer, header, bytes);
  }

  void write_tokens(int layer, const LayerCounts &counts, SnapshotWriter &out) {
    const std::uint64_t distinct = write_table(layer, counts, out);
    const std::size_t sink[] = {sink_bytes_, sink_bytes_}, row[] = {tail_bytes_, tail_bytes_};
    begin(Section::rows, layer, counts.sinks * (sink[0] + sink[1]) + counts.tail * (row[0] + row[1]),
          out);
    copy(counts.sinks, sink, out);
    copy(counts.tail, row, out);
    end(out);
    const std::size_t page[] = {parameter_bytes_, code_bytes_};
    begin(Section::pages, layer, distinct * (page[0] + page[1]), out);
    copy(distinct, page, out);
    end(out);
  }

  /// Returns how many pages it names.
  std::uint64_t write_table(int layer, const LayerCounts &counts, SnapshotWriter &out) {
    const auto at = static_cast<std::size_t>(layer);
    const std::uint64_t size = counts.pages * sizeof(TableRecord);
    for (SnapshotReader &part : parts_) part.begin(Section::table, at, size, size);
    out.begin(Section::table, at, size);
    std::uint64_t distinct = 0;
    std::vector<TableRecord> table, other;
    for_each_piece(counts.pages, sizeof(TableRecord), [&](std::size_t, std::size_t count) {
      for (SnapshotReader &part : parts_) {
        other.resize(count);
        part.read(std::as_writable_bytes(std::span(other)));
        if (&part == &parts_.front()) table = other;
        require_same(other == table, layer, "their page tables");
      }
      for (const TableRecord &record : table) distinct += record.again == 0 ? 1 : 0;
      out.write(std::as_bytes(std::span(table)));
    });
    end(out);
    return distinct;
  }

  /// Begins a section that has so many bytes for each head.
  void begin(Section section, int layer, std::uint64_t of_head, SnapshotWriter &out) {
    const auto at = static_cast<std::size_t>(layer);
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const std::uint64_t size = of_head * static_cast<std::uint64_t>(heads_[i].count);
      parts_[i].begin(section, at, size, size);
    }
    out.begin(section, at, of_head * static_cast<std::uint64_t>(range_.count));
  }
  void end(SnapshotWriter &out) {
    for (SnapshotReader &part : parts_) part.end();
    out.end();
  }

  /// Copies items, each of two arrays that have so many bytes for each head: keys and values of a token,
  /// parameters and codes of a page.
  void copy(std::uint64_t items, const std::size_t (&of_head)[2], SnapshotWriter &out) {
    const std::size_t of_item = (of_head[0] + of_head[1]) * static_cast<std::size_t>(kv_heads_);
    std::vector<std::vector<std::byte>> pieces(parts_.size());
    std::vector<std::byte> all;
    for_each_piece(items, of_item, [&](std::size_t, std::size_t count) {
      for (std::size_t i = 0; i < parts_.size(); ++i) {
        const auto heads = static_cast<std::size_t>(heads_[i].count);
        pieces[i].resize(count * heads * (of_head[0] + of_head[1]));
        parts_[i].read(pieces[i]);
      }
      all.clear();
      for (std::size_t item = 0; item < count; ++item) {
        for (const std::size_t array : {std::size_t{0}, std::size_t{1}}) {
          for (std::size_t i = 0; i < parts_.size(); ++i) {
            const auto heads = static_cast<std::size_t>(heads_[i].count);
            const auto [first, taken] = kept(i);
            const std::size_t of_part = heads * (of_head[0] + of_head[1]) * item;
            const std::size_t before = of_part + (array == 1 ? heads * of_head[0] : 0);
            const std::span<const std::byte> from =
                std::span(pieces[i]).subspan(before + static_cast<std::size_t>(first) * of_head[array],
                                             static_cast<std::size_t>(taken) * of_head[array]);
            all.insert(all.end(), from.begin(), from.end());
          }
        }
      }
      out.write(all);
    });
  }

  /// Which heads of a part, counted from its first, are written.
  Heads kept(std::size_t part) const {
    const auto [first, count] = heads_[part];
    const Index begin = std::clamp<Index>(range_.first - first, 0, count);
    const Index behind = std::clamp<Index>(range_.first + range_.count - first, 0, count);
    return {begin, behind - begin};
  }

  std::vector<SnapshotReader> parts_;
  std::vector<Heads> heads_;  // of each
  SnapshotShape shape_{};     // of the first
  HeadRange range_;
  Index kv_heads_ = 0;        // of all
  std::uint64_t shared_ = 1;  // query heads of a KV head
  CodingSizes sizes_{};       // kv_heads left out

  // Of one head: of a row of the sinks and of the tail, and of a page.
  std::size_t sink_bytes_ = 0, tail_bytes_ = 0, parameter_bytes_ = 0, code_bytes_ = 0;
};

}  // namespace squat::detail::inline SQUAT_CPU_NAMESPACE

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Writes a snapshot of some of the KV heads of another, of a sequence (KVCache::save()) or of codings
/// (KVCache::save_codings()): what a cache of options_of_heads() would have written. in and out: as of
/// load() and save(). Nothing is believed before its checksum was looked at, and the cache that loads
/// what comes out checks that in turn. Throws Error for a snapshot that is damaged, was saved without
/// codings, or whose heads share bits, and for heads that are not there; `out` holds a part then.
template <class In, class Out>
void slice_heads(In &&in, HeadRange heads, Out &&out, const SnapshotProgress &progress = {}) {
  const SnapshotProgress nobody;
  detail::with_source(in, [&](auto &source) {
    std::vector<detail::SnapshotReader> parts;
    parts.emplace_back(source, nobody);
    detail::HeadSnapshots snapshots(std::move(parts));
    detail::check_heads(heads, snapshots.kv_heads());
    detail::with_sink(out, [&](auto &sink) {
      detail::SnapshotWriter to(sink, snapshots.kind(), progress);
      snapshots.write(heads, to);
    });
  });
}

/// Writes a snapshot of all heads of several, one part's heads behind the other's: what a cache of all
/// these heads would have written. parts: SnapshotSources such as StreamSource and SpanSource, of the
/// same tokens, read side by side. For the rest see slice_heads().
template <SnapshotSource Source, class Out>
void join_heads(std::span<Source> parts, Out &&out, const SnapshotProgress &progress = {}) {
  const SnapshotProgress nobody;
  std::vector<detail::SnapshotReader> readers;
  for (Source &part : parts) readers.emplace_back(part, nobody);
  detail::HeadSnapshots snapshots(std::move(readers));
  detail::with_sink(out, [&](auto &sink) {
    detail::SnapshotWriter to(sink, snapshots.kind(), progress);
    snapshots.write({0, static_cast<int>(snapshots.kv_heads())}, to);
  });
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
