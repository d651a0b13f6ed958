#pragma once

// A snapshot as its sections, to read them, and to alter them and make the checksums fit again: so that
// what is behind the checksums is met too.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "squat/cache/snapshot/adoption.hpp"
#include "squat/cache/snapshot/coding_bytes.hpp"
#include "squat/cache/snapshot/sections.hpp"

namespace squat::test {

inline constexpr std::size_t snapshot_mark_bytes = 16, checksum_bytes = 4;

/// Calls visit(header, payload) for the sections, as far as they follow one another. Byte: of what is
/// visited, const or not.
template <class Byte, class Visit>
void for_each_section(std::span<Byte> bytes, Visit &&visit) {
  std::size_t at = snapshot_mark_bytes;
  while (bytes.size() >= at && bytes.size() - at >= sizeof(detail::SectionHeader) + checksum_bytes) {
    detail::SectionHeader header;
    std::memcpy(&header, bytes.data() + at, sizeof header);
    at += sizeof header;
    if (header.size > bytes.size() - at - checksum_bytes) return;
    const auto size = static_cast<std::size_t>(header.size);
    visit(header, bytes.subspan(at, size));
    at += size + checksum_bytes;
  }
}
template <class Visit>
void for_each_section(const std::vector<std::byte> &bytes, Visit &&visit) {
  for_each_section(std::span<const std::byte>(bytes), visit);
}

/// Makes the checksums of all sections and the fingerprints of codings fit.
inline void repair(std::span<std::byte> bytes) {
  for_each_section(bytes, [](const detail::SectionHeader &header, std::span<std::byte> payload) {
    if (header.section == detail::Section::coding && payload.size() > sizeof(detail::CodingHeader)) {
      const std::uint64_t fingerprint =
          detail::coding_fingerprint(payload.subspan(sizeof(detail::CodingHeader)));
      std::memcpy(payload.data(), &fingerprint, sizeof fingerprint);
    }
    detail::Crc32c checksum;
    checksum.add(std::as_bytes(std::span(&header, 1)));
    checksum.add(payload);
    const std::uint32_t value = checksum.value();
    std::memcpy(payload.data() + payload.size(), &value, sizeof value);
  });
}

}  // namespace squat::test
