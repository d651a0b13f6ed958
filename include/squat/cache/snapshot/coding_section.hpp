#pragma once

// A layer's coding as a section of a snapshot.

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "squat/cache/snapshot/adoption.hpp"
#include "squat/cache/snapshot/coding_bytes.hpp"
#include "squat/cache/snapshot/records.hpp"
#include "squat/cache/snapshot/sections.hpp"

namespace squat::detail {

/// What is said before the coding, and the coding's bytes, or none.
struct CodingSection {
  CodingHeader header;
  std::vector<std::byte> bytes;
};

/// Throws Error for one that contradicts itself. What the bytes mean is not looked at.
inline CodingSection read_coding_section(SnapshotReader &in, int layer, const CodingSizes &sizes) {
  CodingSection found{};
  auto &[header, bytes] = found;
  const std::uint64_t size = in.begin(Section::coding, static_cast<std::size_t>(layer), sizeof header,
                                      sizeof header + sizes.most_bytes());
  in.read(std::as_writable_bytes(std::span(&header, 1)));
  for_each_piece(size - sizeof header, 1, [&, into = &bytes](std::size_t first, std::size_t count) {
    into->resize(first + count);
    in.read(std::span(*into).subspan(first, count));
  });
  in.end();
  if (header.present > 1 || header.ready > 1 || (header.present == 0) != bytes.empty() ||
      (header.ready == 1 && header.observed != 0))
    throw_damaged(Section::coding, "it does not say what it holds");
  if (header.present == 1 && coding_fingerprint(bytes) != header.fingerprint)
    throw_damaged(Section::coding, "its fingerprint is not that of its bytes");
  return found;
}

inline void write_coding_section(SnapshotWriter &out, int layer, const CodingHeader &header,
                                 std::span<const std::byte> bytes) {
  out.begin(Section::coding, static_cast<std::size_t>(layer), sizeof header + bytes.size());
  out.write(std::as_bytes(std::span(&header, 1)));
  out.write(bytes);
  out.end();
}

}  // namespace squat::detail
