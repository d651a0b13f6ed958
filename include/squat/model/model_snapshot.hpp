#pragma once

// Snapshots of a whole model: 16 bytes, and behind them the snapshot of each group, in order, as
// cache/snapshot.hpp describes it.
//
//   bytes 0 to 7    "SQUATMDL"
//   bytes 8 to 11   version, 1
//   bytes 12 to 15  how many groups
//
// Numbers are little-endian. Each group's snapshot has checksums of its own, and says which shapes and
// widths it is for.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "squat/core/error.hpp"

namespace squat::detail {

struct ModelSnapshotHeader {
  static constexpr std::string_view magic = "SQUATMDL";
  static constexpr std::uint32_t version = 1;
  using Bytes = std::array<std::byte, 16>;

  static Bytes bytes(std::size_t groups) {
    Bytes bytes{};
    std::memcpy(bytes.data(), magic.data(), magic.size());
    write(std::span(bytes).subspan<8, 4>(), version);
    write(std::span(bytes).subspan<12, 4>(), static_cast<std::uint32_t>(groups));
    return bytes;
  }

  /// Throws Error unless it is that of a snapshot of so many groups.
  static void check(const Bytes &bytes, std::size_t groups) {
    if (std::memcmp(bytes.data(), magic.data(), magic.size()) != 0)
      throw Error("squat: snapshot is none of a model");
    const std::uint32_t found = read(std::span(bytes).subspan<8, 4>());
    if (found != version) throw_invalid("snapshot version", found, std::to_string(version));
    const std::uint32_t held = read(std::span(bytes).subspan<12, 4>());
    if (held != groups) throw_invalid("snapshot groups", held, "as many as the cache has,", groups);
  }

 private:
  static void write(std::span<std::byte, 4> to, std::uint32_t number) {
    for (std::size_t i = 0; i < 4; ++i) to[i] = static_cast<std::byte>(number >> (8 * i) & 0xff);
  }
  static std::uint32_t read(std::span<const std::byte, 4> from) {
    std::uint32_t number = 0;
    for (std::size_t i = 0; i < 4; ++i) number |= static_cast<std::uint32_t>(from[i]) << (8 * i);
    return number;
  }
};

}  // namespace squat::detail
