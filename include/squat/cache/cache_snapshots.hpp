#pragma once

// Which sections follow each other in a cache's snapshots.

#include <vector>

#include "squat/cache/layer_codings.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/sequence.hpp"
#include "squat/cache/snapshot.hpp"
#include "squat/cache/snapshot/sections.hpp"
#include "squat/cache/snapshot/shape.hpp"
#include "squat/cache/snapshot/streams.hpp"
#include "squat/cache/snapshot_codings.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::detail::inline SQUAT_API_NAMESPACE {

/// Writes and reads them, for one call. T: of the cache's exact rows.
template <class T, class Operations, class Stream>
class CacheSnapshots {
 public:
  using Codings = LayerCodings<Operations, Stream>;
  using Pages = typename Codings::Pages;
  using Layer = typename Codings::Layer;
  using Sequence = typename Codings::Sequence;
  using Taken = SnapshotCodings<T, Operations, Stream>;

  /// options: in force, with heads as wide as kernels take them.
  CacheSnapshots(const Options &options, int key_bits, int value_bits, Operations &operations,
                 Pages &pages, Codings &codings, Stream stream)
      : layers_(options.layers),
        codings_(codings),
        shape_(snapshot_shape<T>(options, key_bits, value_bits)),
        parts_(options, shape_, operations, pages, codings.learning(), stream) {}
  CacheSnapshots(const CacheSnapshots &) = delete;  // parts_ refers to shape_

  /// Writes a sequence.
  template <class Out>
  void save(Sequence &sequence, Out &out, const SaveOptions &how) {
    write(out, SnapshotKind::sequence, how.progress, [&](SnapshotWriter &to) {
      for (const Layer &layer : sequence.layers) parts_.write_counts(to, layer);
      for (const Layer &layer : sequence.layers)
        parts_.write_coding(to, layer.coding, layer.layer, how.codings);
      for (Layer &layer : sequence.layers) parts_.write_tokens(to, layer);
    });
  }

  /// Writes the codings that new sequences get.
  template <class Out>
  void save_codings(Out &out, const SnapshotProgress &progress) {
    write(out, SnapshotKind::codings, progress, [&](SnapshotWriter &to) {
      for (int layer = 0; layer < layers_; ++layer)
        parts_.write_coding(to, codings_.own(layer), layer, true);
    });
  }

  /// Reads a sequence into an empty one. taken: what the cache takes of the codings that are found.
  /// make_room(layer, pages): makes sure of so many pages.
  template <class In, class MakeRoom>
  void load(Sequence &sequence, Taken &taken, In &in, const SnapshotProgress &progress,
            MakeRoom &&make_room) {
    read(in, SnapshotKind::sequence, progress, [&](SnapshotReader &from, const SnapshotShape &found) {
      std::vector<LayerCounts> counts;
      for (const Layer &layer : sequence.layers) counts.push_back(parts_.read_counts(from, layer.layer));
      for (Layer &layer : sequence.layers) {
        const bool paged = counts[static_cast<std::size_t>(layer.layer)].pages > 0;
        taken.take(parts_, parts_.read_coding(from, layer.layer), found, layer, paged);
      }
      for (Layer &layer : sequence.layers) {
        parts_.read_tokens(from, layer, counts[static_cast<std::size_t>(layer.layer)],
                           [&](std::size_t pages) { make_room(layer, pages); });
      }
    });
  }

  /// Reads the codings that new sequences get.
  template <class In>
  void load_codings(Taken &taken, In &in, const SnapshotProgress &progress) {
    read(in, SnapshotKind::codings, progress, [&](SnapshotReader &from, const SnapshotShape &found) {
      for (int layer = 0; layer < layers_; ++layer)
        taken.take(parts_, parts_.read_coding(from, layer), found, layer);
    });
  }

 private:
  template <class Out, class Write>
  void write(Out &out, SnapshotKind kind, const SnapshotProgress &progress, Write &&write_parts) {
    with_sink(out, [&](auto &sink) {
      SnapshotWriter to(sink, kind, progress);
      parts_.write_shape(to);
      write_parts(to);
      to.section(Section::end, 0, {});
    });
  }

  template <class In, class Read>
  void read(In &in, SnapshotKind kind, const SnapshotProgress &progress, Read &&read_parts) {
    with_source(in, [&](auto &source) {
      SnapshotReader from(source, kind, progress);
      const SnapshotShape found = parts_.read_shape(from);
      read_parts(from, found);
      parts_.read_end(from);
    });
  }

  int layers_;
  Codings &codings_;
  SnapshotShape shape_;
  Snapshots<T, Operations, Stream> parts_;
};

}  // namespace squat::detail::inline SQUAT_API_NAMESPACE
