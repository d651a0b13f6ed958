#pragma once

// Checksums of snapshots: CRC-32C of sections, FNV-1a of what is compared.
//
// CRC-32C (Castagnoli; RFC 3720, B.4) finds every burst of up to 32 flipped bits, and x86-64 has an
// instruction for it, since SSE4.2. It is our own because the library depends on Eigen and CUDA alone.
// Whether the machine has the instruction is asked at run time: what an engine's objects share by name
// must not depend on their flags.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace squat::detail {

/// By table and byte: what the byte adds to the remainder after as many more bytes as the table's index.
inline constexpr auto crc_tables = [] {
  std::array<std::array<std::uint32_t, 256>, 8> tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t rest = byte;
    for (int bit = 0; bit < 8; ++bit) rest = rest >> 1 ^ ((rest & 1) != 0 ? 0x82f63b78u : 0u);
    tables[0][byte] = rest;
  }
  for (std::size_t table = 1; table < 8; ++table) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t rest = tables[table - 1][byte];
      tables[table][byte] = rest >> 8 ^ tables[0][rest & 255];
    }
  }
  return tables;
}();

/// The remainder once eight more bytes, a little-endian word, are read.
inline std::uint32_t crc_of_word(std::uint32_t rest, std::uint64_t word) {
  word ^= rest;
  std::uint32_t next = 0;
  for (std::size_t byte = 0; byte < 8; ++byte) next ^= crc_tables[7 - byte][word >> 8 * byte & 255];
  return next;
}

/// The remainder once `count` more words are read.
inline std::uint32_t crc_of_words(std::uint32_t rest, const std::byte *from, std::size_t count) {
  const auto word = [from](std::size_t i) {
    std::uint64_t next;
    std::memcpy(&next, from + 8 * i, sizeof next);
    return next;
  };
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
  if (has_instruction) {
    std::uint64_t wide = rest;
    for (std::size_t i = 0; i < count; ++i) asm("crc32q %1, %0" : "+r"(wide) : "r"(word(i)));
    return static_cast<std::uint32_t>(wide);
  }
#endif
  for (std::size_t i = 0; i < count; ++i) rest = crc_of_word(rest, word(i));
  return rest;
}

class Crc32c {
 public:
  void add(std::span<const std::byte> bytes) {
    const std::byte *from = bytes.data();
    std::size_t left = bytes.size();
    rest_ = crc_of_words(rest_, from, left / 8);
    from += left / 8 * 8;
    left %= 8;
    for (; left > 0; --left, ++from) {
      rest_ = rest_ >> 8 ^ crc_tables[0][(rest_ ^ std::to_integer<std::uint32_t>(*from)) & 255];
    }
  }
  std::uint32_t value() const { return ~rest_; }

 private:
  std::uint32_t rest_ = ~0u;
};

/// FNV-1a over 64 bits: names a coding, or a rotary table, by its bytes.
class Fingerprint {
 public:
  void add(std::span<const std::byte> bytes) {
    for (const std::byte byte : bytes)
      value_ = (value_ ^ std::to_integer<std::uint64_t>(byte)) * 1099511628211u;
  }
  template <class Number>
  void add_number(Number number) {
    add(std::as_bytes(std::span(&number, 1)));
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 14695981039346656037u;
};

}  // namespace squat::detail
