#pragma once

// What a saved part of a split context begins with: which tokens all parts have.

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "squat/cache/snapshot/checksum.hpp"
#include "squat/cache/snapshot/streams.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/parallel/context_runs.hpp"

namespace squat::detail {

/// The part's runs follow, ContextRun each, and a CRC-32C of both; then a snapshot of its tokens.
struct ContextHeader {
  std::array<char, 8> mark;
  std::uint32_t version, parts, part, runs;
  std::int64_t length;  ///< tokens of the sequence
};
static_assert(sizeof(ContextHeader) == 32);

inline constexpr std::array<char, 8> context_mark = {'s', 'q', 'u', 'a', 't', 'p', 'r', 't'};
inline constexpr std::uint32_t context_version = 2;

template <SnapshotSink Sink>
void write_runs(Sink &sink, const ContextRuns &all, int parts, int part, Index length) {
  const std::vector<ContextRun> &runs = all.all();
  const ContextHeader header{context_mark,
                             context_version,
                             static_cast<std::uint32_t>(parts),
                             static_cast<std::uint32_t>(part),
                             static_cast<std::uint32_t>(runs.size()),
                             length};
  Crc32c checksum;
  for (const auto bytes : {std::as_bytes(std::span(&header, 1)), std::as_bytes(std::span(runs))}) {
    checksum.add(bytes);
    sink.write(bytes);
  }
  const std::uint32_t sum = checksum.value();
  sink.write(std::as_bytes(std::span(&sum, 1)));
}

/// Returns the runs, and the tokens of the sequence. Throws Error for a part of another number than
/// `part` of `parts`, and for what is damaged.
template <SnapshotSource Source>
std::pair<ContextRuns, Index> read_runs(Source &source, int parts, int part) {
  ContextHeader header{};
  const auto head = std::as_writable_bytes(std::span(&header, 1));
  source.read(head);
  if (header.mark != context_mark) throw Error("squat: snapshot does not begin with the mark of a part");
  if (header.version != context_version)
    throw_invalid("snapshot.version", header.version, "the one that is known,", context_version);
  if (header.parts != static_cast<std::uint32_t>(parts))
    throw_invalid("snapshot.parts", header.parts, "that of the context,", parts);
  if (header.part != static_cast<std::uint32_t>(part))
    throw_invalid("snapshot.part", header.part, "the next of this rank's,", part);
  Crc32c checksum;
  checksum.add(head);
  const auto require = [](bool holds) {
    if (!holds) throw Error("squat: snapshot is damaged: which tokens parts have");
  };
  std::vector<ContextRun> runs;
  Index end = 0;
  for (std::uint32_t i = 0; i < header.runs; ++i) {
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    ContextRun run{};
    source.read(std::as_writable_bytes(std::span(&run, 1)));
    checksum.add(std::as_bytes(std::span(&run, 1)));
    require(run.first == end && run.count > 0 && run.count <= most - end);
    require(run.part >= 0 && run.part < parts);
    require(run.position >= 0 && run.position <= most - run.count);
    end = run.end();
    runs.push_back(run);
  }
  std::uint32_t sum = 0;
  source.read(std::as_writable_bytes(std::span(&sum, 1)));
  require(sum == checksum.value() && header.length >= 0 && header.length <= end);
  return {ContextRuns(std::move(runs)), header.length};
}

}  // namespace squat::detail
