#pragma once

// What the numbers in a snapshot's rows and pages must be so that no kernel meets one that is not
// finite.

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::detail::inline SQUAT_CPU_NAMESPACE {

/// Whether floating-point numbers are all of magnitude up to `most`, a number's bits.
template <class Bits = std::uint16_t>
bool magnitudes_fit(const std::byte *numbers, std::size_t count, std::type_identity_t<Bits> most) {
  constexpr Bits magnitude = std::numeric_limits<Bits>::max() / 2;  // without the sign
  unsigned above = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, numbers + i * sizeof bits, sizeof bits);
    above |= (bits & magnitude) > most;
  }
  return above == 0;
}

/// Whether exact numbers are such as the cache takes from engines, finite and of magnitude up to 65504.
template <Element T>
bool elements_fit(const std::byte *elements, std::size_t count) {
  if constexpr (std::is_same_v<T, half>) return magnitudes_fit(elements, count, 0x7bff);
  if constexpr (std::is_same_v<T, bfloat16>) return magnitudes_fit(elements, count, 0x477f);
  return magnitudes_fit<std::uint32_t>(elements, count, std::bit_cast<std::uint32_t>(65504.0f));
}

/// Throws Error for rows that no sequence has. T: of exact rows. in_bytes: they are of bytes, each with
/// its float16 step behind it.
template <Element T>
void check_rows(const std::byte *from, std::size_t rows, std::size_t head_dim, bool in_bytes) {
  bool fit = true;
  if (in_bytes) {
    for (std::size_t row = 0; row < rows; ++row, from += head_dim + sizeof(half)) {
      fit &= std::none_of(from, from + head_dim, [](std::byte x) { return x == std::byte{0x80}; });
      std::uint16_t step;
      std::memcpy(&step, from + head_dim, sizeof step);
      fit &= step <= 0x7bff;
    }
  } else {
    fit = elements_fit<T>(from, rows * head_dim);
  }
  if (!fit) throw Error("squat: snapshot.rows are impossible: an element is out of range");
}

/// Whether no byte of [from, from + size) says anything.
inline bool all_zero(const std::byte *from, std::size_t size) {
  return std::all_of(from, from + size, [](std::byte byte) { return byte == std::byte{0}; });
}

}  // namespace squat::detail::inline SQUAT_CPU_NAMESPACE
