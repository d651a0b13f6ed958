#pragma once

// What an accepted snapshot must hold.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>

#include "reference/saved.hpp"
#include "reference/snapshot_sections.hpp"

namespace squat::test {

/// The sections of a snapshot up to its end, but for what counts for nothing: how many tokens statistics
/// ask for once none are gathered, and, unless `coding_counts`, the coding of rows that are not packed
/// with it.
inline Bytes what_it_says(const Bytes &bytes, bool coding_counts = false) {
  std::map<std::uint32_t, std::uint64_t> pages;  // by layer
  bool ended = false;
  Bytes says;
  for_each_section(bytes, [&](const detail::SectionHeader &header, std::span<const std::byte> payload) {
    if (header.section == detail::Section::counts)
      std::memcpy(&pages[header.layer], payload.data() + 16, sizeof(std::uint64_t));
    const bool of_rows = header.section == detail::Section::coding && pages[header.layer] == 0;
    if (ended || (of_rows && !coding_counts)) return;
    ended = header.section == detail::Section::end;
    if (header.section == detail::Section::shape) payload = payload.first(payload.size() - 8);
    says.insert(says.end(), payload.begin(), payload.end());
  });
  return says;
}

}  // namespace squat::test
