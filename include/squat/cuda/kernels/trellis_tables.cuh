#pragma once

// What coding/trellis.hpp says of windows and levels, in device code: packed into constants, which
// kernels take apart.

#include <cstddef>
#include <cstdint>

#include "squat/coding/trellis.hpp"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// The hashes of a window's bits 4, 5, 6 and 7, four bits each.
inline constexpr Word hashes_of_bits =
    trellis_hash[1] | trellis_hash[2] << 4 | trellis_hash[4] << 8 | trellis_hash[8] << 12;

/// trellis_index().
__device__ constexpr unsigned device_trellis_index(unsigned window) {
  unsigned index = window & 15;
  for (unsigned bit = 0; bit < 4; ++bit) {
    if ((window >> (4 + bit) & 1) != 0) index ^= hashes_of_bits >> 4 * bit & 15;
  }
  return index;
}

/// Eight levels from `First` on, a byte each.
template <int Bits, std::size_t First>
inline constexpr std::uint64_t eight_levels = [] {
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < 8; ++i) {
    const auto level = static_cast<std::uint8_t>(trellis_code(Bits).levels[First + i]);
    bytes |= std::uint64_t{level} << 8 * i;
  }
  return bytes;
}();

/// Level First + index, index < 16.
template <int Bits, std::size_t First>
__device__ inline float trellis_level(int index) {
  constexpr std::uint64_t low = eight_levels<Bits, First>, high = eight_levels<Bits, First + 8>;
  return static_cast<float>(static_cast<std::int8_t>((index < 8 ? low : high) >> index % 8 * 8));
}

}  // namespace squat::cuda
