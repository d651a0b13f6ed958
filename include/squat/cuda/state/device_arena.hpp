#pragma once

// Small pieces of device memory, cut from a few large allocations.

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "squat/core/config.hpp"
#include "squat/cuda/state/device_buffer.hpp"

namespace squat::cuda {

/// Hands out pieces; one that is given back serves the next that asks for its size. Nothing waits: what
/// is done to a piece on a stream comes before what its next owner does, for the engine orders a cache's
/// calls. Not to be moved while pieces are out.
class DeviceArena {
 public:
  DeviceArena() = default;
  DeviceArena(const DeviceArena &) = delete;
  DeviceArena &operator=(const DeviceArena &) = delete;

  /// A piece, uninitialised and aligned to 256 bytes. Throws Error where there is no memory.
  std::byte *allocate(std::size_t bytes) {
    bytes = rounded(bytes);
    ask_for_device_memory(bytes);
    Size &size = sizes_[bytes];
    if (size.free.empty()) {
      size.free.reserve(size.pieces + 1);  // so that release() cannot fail
      size.free.push_back(cut(bytes));
      ++size.pieces;
    }
    std::byte *piece = size.free.back();
    size.free.pop_back();
    used_ += bytes;
    return piece;
  }

  void release(std::byte *piece, std::size_t bytes) {
    bytes = rounded(bytes);
    used_ -= bytes;
    sizes_.find(bytes)->second.free.push_back(piece);
  }

  /// What a piece of so many bytes takes.
  static constexpr std::size_t rounded(std::size_t bytes) {
    return (bytes + alignment - 1) / alignment * alignment;
  }

  /// Of all allocations.
  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const Chunk &chunk : chunks_) sum += chunk.memory.bytes();
    return sum;
  }
  /// Of pieces that are out.
  std::size_t used_bytes() const { return used_; }

 private:
  static constexpr std::size_t alignment = 256;
  static constexpr std::size_t least_chunk = std::size_t{1} << 20, most_chunk = std::size_t{64} << 20;

  struct Chunk {
    DeviceBuffer<std::byte> memory;
    std::size_t cut = 0;  // so much of it
  };
  struct Size {
    std::vector<std::byte *> free;
    std::size_t pieces = 0;
  };

  std::byte *cut(std::size_t bytes) {
    auto chunk = std::find_if(chunks_.begin(), chunks_.end(),
                              [&](const Chunk &each) { return each.memory.size() - each.cut >= bytes; });
    if (chunk == chunks_.end()) {
      chunks_.reserve(chunks_.size() + 1);
      const std::size_t size = std::max(bytes, std::clamp(this->bytes(), least_chunk, most_chunk));
      chunks_.push_back({DeviceBuffer<std::byte>(size)});
      chunk = chunks_.end() - 1;
    }
    std::byte *piece = chunk->memory.data() + chunk->cut;
    chunk->cut += bytes;
    return piece;
  }

  std::vector<Chunk> chunks_;
  std::map<std::size_t, Size> sizes_;
  std::size_t used_ = 0;
};

/// `size` elements of trivial type in a piece of an arena, uninitialised, or nothing. The arena outlives
/// it.
template <class Scalar>
class ArenaPiece {
 public:
  ArenaPiece() = default;
  ArenaPiece(DeviceArena &arena, std::size_t size)
      : piece_(arena.allocate(size * sizeof(Scalar)), Release{&arena, size}) {}

  Scalar *data() const { return reinterpret_cast<Scalar *>(piece_.get()); }
  std::size_t size() const { return piece_ ? piece_.get_deleter().size : 0; }
  std::size_t bytes() const { return DeviceArena::rounded(size() * sizeof(Scalar)); }

 private:
  struct Release {
    DeviceArena *arena = nullptr;
    std::size_t size = 0;
    void operator()(std::byte *piece) const { arena->release(piece, size * sizeof(Scalar)); }
  };
  std::unique_ptr<std::byte, Release> piece_;
};

}  // namespace squat::cuda
