#pragma once

// A snapshot as its sections, to alter them and make the checksums fit again: so that what is behind the
// checksums is met too.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "squat/cache/snapshot/adoption.hpp"
#include "squat/cache/snapshot/coding_bytes.hpp"
#include "squat/cache/snapshot/sections.hpp"

namespace squat::test {

/// Makes the checksums of all sections and the fingerprints of codings fit, as far as sections follow
/// one another.
inline void repair(std::span<std::byte> bytes) {
  constexpr std::size_t begin = 16, checksum_bytes = 4;
  std::size_t at = begin;
  while (bytes.size() >= at && bytes.size() - at >= sizeof(detail::SectionHeader) + checksum_bytes) {
    detail::SectionHeader header;
    std::memcpy(&header, bytes.data() + at, sizeof header);
    const std::size_t left = bytes.size() - at - sizeof header - checksum_bytes;
    if (header.size > left) return;
    const auto size = static_cast<std::size_t>(header.size);
    const std::span payload = bytes.subspan(at + sizeof header, size);
    if (header.section == detail::Section::coding && size > sizeof(detail::CodingHeader)) {
      const std::uint64_t fingerprint =
          detail::coding_fingerprint(payload.subspan(sizeof(detail::CodingHeader)));
      std::memcpy(payload.data(), &fingerprint, sizeof fingerprint);
    }
    detail::Crc32c checksum;
    checksum.add(bytes.subspan(at, sizeof header + size));
    const std::uint32_t value = checksum.value();
    std::memcpy(bytes.data() + at + sizeof header + size, &value, sizeof value);
    at += sizeof header + size + checksum_bytes;
  }
}

}  // namespace squat::test
