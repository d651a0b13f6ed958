#pragma once

// Where snapshots go to and come from.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <istream>
#include <ostream>
#include <span>
#include <type_traits>
#include <vector>

#include "squat/core/error.hpp"

namespace squat {

/// Takes a snapshot's bytes, a piece after the other. Throws where it cannot.
template <class Sink>
concept SnapshotSink = requires(Sink &sink, std::span<const std::byte> bytes) {
  { sink.write(bytes) } -> std::same_as<void>;
};

/// Gives them: fills all of `bytes`, or throws.
template <class Source>
concept SnapshotSource = requires(Source &source, std::span<std::byte> bytes) {
  { source.read(bytes) } -> std::same_as<void>;
};

/// Told how many bytes of a snapshot have gone by. What it throws ends the call, which leaves the cache
/// as it was.
using SnapshotProgress = std::function<void(std::uint64_t bytes)>;

/// What KVCache::save() writes, and whom it tells.
struct SaveOptions {
  /// Without codings, a snapshot is for caches that hold the same ones.
  bool codings = true;
  SnapshotProgress progress{};  ///< told after each piece; empty: nobody is
};

/// A sink over a stream, which is not flushed.
class StreamSink {
 public:
  /// The stream outlives the sink.
  explicit StreamSink(std::ostream &out) : out_(&out) {}
  /// Throws Error where the stream fails.
  void write(std::span<const std::byte> bytes) {
    out_->write(reinterpret_cast<const char *>(bytes.data()),
                static_cast<std::streamsize>(bytes.size()));
    if (!*out_) throw Error("squat: out cannot be written");
  }

 private:
  std::ostream *out_;
};

/// A source over a stream, of which it reads no byte more than the snapshot has.
class StreamSource {
 public:
  /// The stream outlives the source.
  explicit StreamSource(std::istream &in) : in_(&in) {}
  /// Throws Error where the stream ends before.
  void read(std::span<std::byte> bytes) {
    if (!in_->read(reinterpret_cast<char *>(bytes.data()), static_cast<std::streamsize>(bytes.size())))
      throw Error("squat: snapshot is truncated");
  }

 private:
  std::istream *in_;
};

/// A sink that appends to a vector.
class VectorSink {
 public:
  /// The vector outlives the sink.
  explicit VectorSink(std::vector<std::byte> &bytes) : bytes_(&bytes) {}
  /// Appends the bytes.
  void write(std::span<const std::byte> bytes) {
    bytes_->insert(bytes_->end(), bytes.begin(), bytes.end());
  }

 private:
  std::vector<std::byte> *bytes_;
};

/// A sink that fills memory of the caller's.
class SpanSink {
 public:
  /// The memory outlives the sink.
  explicit SpanSink(std::span<std::byte> memory) : left_(memory), size_(memory.size()) {}
  /// Throws Error where they do not fit.
  void write(std::span<const std::byte> bytes) {
    if (bytes.size() > left_.size()) throw Error("squat: snapshot is larger than the memory for it");
    std::copy(bytes.begin(), bytes.end(), left_.begin());
    left_ = left_.subspan(bytes.size());
  }
  /// Bytes written so far.
  std::size_t size() const { return size_ - left_.size(); }

 private:
  std::span<std::byte> left_;
  std::size_t size_;
};

/// A source over memory.
class SpanSource {
 public:
  /// The bytes outlive the source.
  explicit SpanSource(std::span<const std::byte> bytes) : left_(bytes) {}
  /// Throws Error where the memory ends before.
  void read(std::span<std::byte> bytes) {
    if (bytes.size() > left_.size()) throw Error("squat: snapshot is truncated");
    std::copy_n(left_.begin(), bytes.size(), bytes.begin());
    left_ = left_.subspan(bytes.size());
  }
  /// What follows the snapshot.
  std::span<const std::byte> left() const { return left_; }

 private:
  std::span<const std::byte> left_;
};

}  // namespace squat

namespace squat::detail {

/// Calls run(sink) with the sink that belongs to `out`: a sink itself, a stream, or a vector.
template <class Out, class Run>
void with_sink(Out &out, Run &&run) {
  if constexpr (SnapshotSink<Out>) {
    run(out);
  } else if constexpr (std::is_convertible_v<Out &, std::ostream &>) {
    StreamSink sink(out);
    run(sink);
  } else {
    static_assert(std::is_same_v<Out, std::vector<std::byte>>,
                  "squat: a snapshot goes to a SnapshotSink, a std::ostream or a vector of std::byte");
    VectorSink sink(out);
    run(sink);
  }
}

/// Calls run(source) with the source that belongs to `in`: a source itself, a stream, or memory.
template <class In, class Run>
decltype(auto) with_source(In &in, Run &&run) {
  if constexpr (SnapshotSource<In>) {
    return run(in);
  } else if constexpr (std::is_convertible_v<In &, std::istream &>) {
    StreamSource source(in);
    return run(source);
  } else {
    static_assert(std::is_convertible_v<In &, std::span<const std::byte>>,
                  "squat: a snapshot comes from a SnapshotSource, a std::istream or bytes");
    SpanSource source{std::span<const std::byte>(in)};
    return run(source);
  }
}

}  // namespace squat::detail
