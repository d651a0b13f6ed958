#pragma once

// The frame of a snapshot: mark, version, and sections with their checksums. See cache/snapshot.hpp.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>

#include "squat/cache/snapshot/checksum.hpp"
#include "squat/cache/snapshot/streams.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"

namespace squat::detail {

static_assert(std::endian::native == std::endian::little, "squat: snapshots are little-endian");

inline constexpr std::array<char, 8> snapshot_mark = {'s', 'q', 'u', 'a', 't', 's', 'n', 'p'};
inline constexpr std::uint32_t snapshot_version = 1;

/// What a snapshot is of.
enum class SnapshotKind : std::uint32_t { sequence = 1, codings = 2 };

/// Sections, in the order in which they come. Those from `coding` on are a layer's.
enum class Section : std::uint32_t {
  shape = 1,
  coding = 2,
  counts = 3,
  table = 4,
  rows = 5,
  pages = 6,
  end = 7
};

constexpr const char *name_of(Section section) {
  constexpr std::array names = {"shape", "coding", "counts", "page table", "rows", "pages", "end"};
  return names[static_cast<std::size_t>(section) - 1];
}

[[noreturn]] inline void throw_damaged(Section section, const std::string &what) {
  throw Error(std::string("squat: snapshot is damaged: section ") + name_of(section) + ": " + what);
}

struct SectionHeader {
  Section section;
  std::uint32_t layer;
  std::uint64_t size;  ///< of what follows, without the checksum
};
static_assert(sizeof(SectionHeader) == 16);

/// Writes sections to a sink of any type.
class SnapshotWriter {
 public:
  template <SnapshotSink Sink>
  SnapshotWriter(Sink &sink, SnapshotKind kind, const SnapshotProgress &progress)
      : sink_(&sink),
        write_(
            [](void *to, std::span<const std::byte> bytes) { static_cast<Sink *>(to)->write(bytes); }),
        progress_(&progress) {
    put(std::as_bytes(std::span(snapshot_mark)));
    const std::array<std::uint32_t, 2> numbers = {snapshot_version, static_cast<std::uint32_t>(kind)};
    put(std::as_bytes(std::span(numbers)));
  }

  /// A section of `size` bytes, which write() calls bring and end() ends.
  void begin(Section section, std::size_t layer, std::uint64_t size) {
    checksum_ = {};
    left_ = size;
    const SectionHeader header{section, static_cast<std::uint32_t>(layer), size};
    checksum_.add(std::as_bytes(std::span(&header, 1)));
    put(std::as_bytes(std::span(&header, 1)));
  }
  void write(std::span<const std::byte> bytes) {
    SQUAT_ASSERT(bytes.size() <= left_);
    left_ -= bytes.size();
    checksum_.add(bytes);
    put(bytes);
  }
  void end() {
    SQUAT_ASSERT(left_ == 0);
    const std::uint32_t checksum = checksum_.value();
    put(std::as_bytes(std::span(&checksum, 1)));
  }

  void section(Section section, std::size_t layer, std::span<const std::byte> bytes) {
    begin(section, layer, bytes.size());
    write(bytes);
    end();
  }

 private:
  void put(std::span<const std::byte> bytes) {
    write_(sink_, bytes);
    done_ += bytes.size();
    if (*progress_) (*progress_)(done_);
  }

  void *sink_;
  void (*write_)(void *, std::span<const std::byte>);
  const SnapshotProgress *progress_;
  Crc32c checksum_;
  std::uint64_t left_ = 0;
  std::uint64_t done_ = 0;
};

/// Reads sections from a source of any type. Throws Error for what is not there as it should be.
class SnapshotReader {
 public:
  /// Of either kind.
  template <SnapshotSource Source>
  SnapshotReader(Source &source, const SnapshotProgress &progress)
      : source_(&source),
        read_([](void *from, std::span<std::byte> bytes) { static_cast<Source *>(from)->read(bytes); }),
        progress_(&progress) {
    std::array<char, 8> mark{};
    get(std::as_writable_bytes(std::span(mark)));
    if (mark != snapshot_mark) throw Error("squat: snapshot does not begin with the mark of one");
    std::array<std::uint32_t, 2> numbers{};
    get(std::as_writable_bytes(std::span(numbers)));
    if (numbers[0] != snapshot_version)
      throw_invalid("snapshot.version", numbers[0], "the one that is known,", snapshot_version);
    kind_ = SnapshotKind{numbers[1]};
  }

  /// Of one kind alone.
  template <SnapshotSource Source>
  SnapshotReader(Source &source, SnapshotKind kind, const SnapshotProgress &progress)
      : SnapshotReader(source, progress) {
    if (kind_ != kind) {
      throw Error(kind == SnapshotKind::sequence ? "squat: snapshot is not of a sequence"
                                                 : "squat: snapshot is not of codings");
    }
  }

  /// As the file says; perhaps neither of those that are known.
  SnapshotKind kind() const { return kind_; }

  /// The next section, which must be this one and have `least` to `most` bytes. Returns how many.
  std::uint64_t begin(Section section, std::size_t layer, std::uint64_t least, std::uint64_t most) {
    SectionHeader header{};
    get(std::as_writable_bytes(std::span(&header, 1)));
    if (header.section != section || header.layer != layer) throw_damaged(section, "it is not there");
    if (header.size < least || header.size > most) throw_damaged(section, "its size is wrong");
    section_ = section;
    left_ = header.size;
    checksum_ = {};
    checksum_.add(std::as_bytes(std::span(&header, 1)));
    return left_;
  }
  void read(std::span<std::byte> bytes) {
    if (bytes.size() > left_) throw_damaged(section_, "it is too short");
    left_ -= bytes.size();
    get(bytes);
    checksum_.add(bytes);
  }
  void end() {
    std::uint32_t checksum = 0;
    if (left_ != 0) throw_damaged(section_, "it is too long");
    get(std::as_writable_bytes(std::span(&checksum, 1)));
    if (checksum != checksum_.value()) throw_damaged(section_, "its checksum does not match");
  }

  /// A section whose size is known.
  void section(Section section, std::size_t layer, std::span<std::byte> bytes) {
    begin(section, layer, bytes.size(), bytes.size());
    read(bytes);
    end();
  }

 private:
  void get(std::span<std::byte> bytes) {
    read_(source_, bytes);
    done_ += bytes.size();
    if (*progress_) (*progress_)(done_);
  }

  void *source_;
  void (*read_)(void *, std::span<std::byte>);
  const SnapshotProgress *progress_;
  SnapshotKind kind_{};
  Crc32c checksum_;
  Section section_ = Section::shape;
  std::uint64_t left_ = 0;
  std::uint64_t done_ = 0;
};

}  // namespace squat::detail
