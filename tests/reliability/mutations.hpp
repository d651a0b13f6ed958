#pragma once

// Changes to files: of bytes, and of a snapshot's sections, whose sizes and checksums then fit again.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "reference/saved.hpp"
#include "reference/snapshot_sections.hpp"

namespace squat::test {

class Mutations {
 public:
  explicit Mutations(unsigned seed) : random_(seed) {}

  /// Changes some bytes, or numbers of 1 to 8 bytes to those that readers like least, or cuts or doubles
  /// a stretch.
  void change_bytes(Bytes &bytes) {
    for (std::size_t changes = 1 + below(3); changes > 0 && !bytes.empty(); --changes) {
      const std::size_t at = below(bytes.size());
      const auto first = bytes.begin() + static_cast<std::ptrdiff_t>(at);
      const auto length = static_cast<std::ptrdiff_t>(std::min(below(16), bytes.size() - at));
      switch (below(12)) {
        case 0:
          bytes.erase(first, first + length);
          break;
        case 1:
          bytes.insert(first, static_cast<std::size_t>(length), bytes[at]);
          break;
        case 2:
        case 3:
        case 4:
          bytes[at] ^= std::byte{static_cast<unsigned char>(1u << below(8))};
          break;
        default:
          change_number(std::span(bytes).subspan(at));
      }
    }
  }

  /// Changes a number of a section, or how long it is, and perhaps a count with it; drops, doubles or
  /// swaps sections.
  void change_sections(Bytes &bytes) {
    std::vector<Part> parts;
    for_each_section(bytes,
                     [&](const detail::SectionHeader &header, std::span<const std::byte> payload) {
                       parts.push_back({header, {payload.begin(), payload.end()}});
                     });
    for (std::size_t changes = 1 + below(2); changes > 0 && !parts.empty(); --changes) {
      Part &part = parts[below(parts.size())];
      const auto at = static_cast<std::ptrdiff_t>(below(parts.size()));
      switch (below(16)) {
        case 0:
          parts.erase(parts.begin() + at);
          break;
        case 1:
          parts.insert(parts.begin() + at, part);
          break;
        case 2:
          std::swap(part, parts[static_cast<std::size_t>(at)]);
          break;
        case 3:
          part.header.section = detail::Section{static_cast<std::uint32_t>(below(9))};
          break;
        case 4:
          part.header.layer = static_cast<std::uint32_t>(below(4)) - 1;
          break;
        case 5:
        case 6:
        case 7:
          resize(parts, part);
          break;
        default:
          if (!part.payload.empty()) {
            const std::size_t words = (part.payload.size() + 3) / 4;
            change_number(std::span(part.payload).subspan(4 * below(words)));
          }
      }
    }
    bytes.resize(snapshot_mark_bytes);
    for (Part &part : parts) append(bytes, part);
    repair(bytes);
  }

 private:
  struct Part {
    detail::SectionHeader header;
    Bytes payload;
  };

  std::size_t below(std::size_t most) { return std::size_t{random_()} % std::max<std::size_t>(most, 1); }

  /// To one that is awkward, or next to what it is.
  void change_number(std::span<std::byte> bytes) {
    constexpr std::uint64_t awkward[] = {0,
                                         1,
                                         0x7f,
                                         0x80,
                                         0xff,
                                         0x7fff,
                                         0x8000,
                                         0x7f800000,
                                         0x7fc00000,
                                         0x7fffffff,
                                         0x80000000,
                                         0xffffffff,
                                         0x7ff0000000000000,
                                         0x8000000000000000,
                                         0xffffffffffffffff,
                                         0x7e007e007e007e00};
    const std::size_t size = std::min<std::size_t>(std::size_t{1} << below(4), bytes.size());
    std::uint64_t number = 0;
    std::memcpy(&number, bytes.data(), size);
    switch (below(4)) {
      case 0:
        ++number;
        break;
      case 1:
        --number;
        break;
      default:
        number = awkward[below(std::size(awkward))];
    }
    std::memcpy(bytes.data(), &number, size);
  }

  /// Makes a section longer or shorter by some numbers, entries or tokens; sometimes counts say so too.
  void resize(std::vector<Part> &parts, Part &part) {
    constexpr std::size_t units[] = {1, 4, 8, 24, 64, 128, 132, 256};
    const std::size_t by = units[below(std::size(units))] * (1 + below(3));
    const bool longer = below(2) == 0;
    Bytes &payload = part.payload;
    if (!longer && payload.size() < by) return;
    if (longer && payload.size() >= by) {
      const Bytes last(payload.end() - static_cast<std::ptrdiff_t>(by), payload.end());
      payload.insert(payload.end(), last.begin(), last.end());
    } else {
      payload.resize(longer ? payload.size() + by : payload.size() - by);
    }
    part.header.size = payload.size();
    if (below(2) == 0) return;
    for (Part &counts : parts) {
      if (counts.header.section != detail::Section::counts || counts.payload.size() < 24) continue;
      std::uint64_t number = 0;
      std::byte *which = counts.payload.data() + 8 * below(3);  // sinks, tail, pages
      std::memcpy(&number, which, sizeof number);
      number += longer ? 1 : std::uint64_t(-1);
      std::memcpy(which, &number, sizeof number);
    }
  }

  static void append(Bytes &bytes, const Part &part) {
    const auto header = std::as_bytes(std::span(&part.header, 1));
    bytes.insert(bytes.end(), header.begin(), header.end());
    bytes.insert(bytes.end(), part.payload.begin(), part.payload.end());
    bytes.resize(bytes.size() + checksum_bytes);
  }

  std::mt19937 random_;
};

}  // namespace squat::test
