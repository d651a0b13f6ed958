#pragma once

// Trellis codes decoded as coding/trellis.hpp defines them, one element at a time.

#include <array>
#include <bit>
#include <vector>

#include "squat/coding/trellis.hpp"

namespace squat::test {

/// The levels of a circular row of codes, in trellis units.
inline std::vector<int> decode_row(const std::vector<int> &codes, int bits) {
  const int step = bits == 1 ? 1 : 2;
  const auto count = static_cast<int>(codes.size());
  std::vector<int> levels;
  for (int i = 0; i < count; ++i) {
    unsigned window = 0;
    for (int back = 8 / step - 1; back >= 0; --back) {
      const int code = codes[static_cast<std::size_t>((i - back + count) % count)];
      window = window << step | static_cast<unsigned>(code & ((1 << step) - 1));
    }
    unsigned index = window % 16;
    constexpr std::array<unsigned, 4> masks = {5, 10, 1, 2};
    for (unsigned bit = 0; bit < 4; ++bit) {
      index ^= static_cast<unsigned>(std::popcount(window / 16 & masks[bit]) % 2) << bit;
    }
    if (bits == 3 && codes[static_cast<std::size_t>(i)] >= 4) index += 16;
    levels.push_back(trellis_code(bits).levels[index]);
  }
  return levels;
}

}  // namespace squat::test
