#pragma once

// Packed trellis codes of 1 to 3 bits.
//
// A block has rows, the extent that a trellis runs along, and an inner extent: tokens and channels of
// keys, channels and tokens of values. Both are what lanes and inner are to scalar codes (codes.hpp),
// and the bytes are as many. A byte holds four consecutive codes of a row, the newest lowest, so that
// it, or it and the byte of the four before, holds the windows of all four; a lane of four bytes holds
// those of four inner indices, and the lanes of a row of blocks follow each other:
//
//   2 bits   code (r, i) in byte i / 4 * rows + r / 4 * 4 + i % 4 at bit 2 * (3 - r % 4)
//   1 bit    in byte i / 8 * rows + r / 4 * 4 + i % 4 at bit 3 - r % 4, plus 4 where i / 4 is odd
//   3 bits   two planes: the low two bits as codes of 2 bits, behind them the high bit as those of 1
//
// `rows` is a multiple of 32, the inner extent of 8.

#include <cstddef>
#include <cstdint>

#include "squat/coding/codes.hpp"
#include "squat/coding/trellis.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Inner extents of packed trellis codes have a multiple of so many indices.
inline constexpr Index trellis_inner = 8;

/// Packs one plane of 1 or 2 bits: those from bit `shift` of codes on.
template <int Bits>
void pack_trellis_plane(const std::uint8_t *codes, Index inner_stride, Index rows, Index inner,
                        int shift, std::uint8_t *packed) {
  constexpr unsigned mask = (1u << Bits) - 1;
  constexpr Index quads = 2 / Bits;  // of inner indices that share bytes
  for (Index first = 0; first < inner; first += 4 * quads) {
    for (Index row = 0; row < rows; row += 4, packed += 4) {
      for (Index byte = 0; byte < 4; ++byte) {
        unsigned bits = 0;
        for (Index quad = quads; quad-- > 0;) {
          const std::uint8_t *four = codes + (first + quad * 4 + byte) * inner_stride + row;
          for (Index i = 0; i < 4; ++i)
            bits = bits << Bits | (static_cast<unsigned>(four[i] >> shift) & mask);
        }
        packed[byte] = static_cast<std::uint8_t>(bits);
      }
    }
  }
}

/// Packs codes of `bits` bits, row r's code i at codes[r + i * inner_stride].
inline void pack_trellis(int bits, const std::uint8_t *codes, Index inner_stride, Index rows,
                         Index inner, std::uint8_t *packed) {
  SQUAT_ASSERT(rows % trellis_row == 0 && inner % trellis_inner == 0);
  if (bits == 1) return pack_trellis_plane<1>(codes, inner_stride, rows, inner, 0, packed);
  pack_trellis_plane<2>(codes, inner_stride, rows, inner, 0, packed);
  if (bits == 3) {
    pack_trellis_plane<1>(codes, inner_stride, rows, inner, 2, packed + plane_bytes(2, rows, inner));
  }
}

/// The code of (row, index) of packed trellis codes.
inline int packed_trellis_code(int bits, const std::uint8_t *packed, Index rows, Index inner, Index row,
                               Index index) {
  const auto of_plane = [&](int width, const std::uint8_t *plane) {
    const Index byte = index / (8 / width) * rows + row / 4 * 4 + index % 4;
    const auto bit = width == 2 ? 2 * (3 - row % 4) : 3 - row % 4 + index / 4 % 2 * 4;
    return plane[byte] >> bit & ((1 << width) - 1);
  };
  if (bits < 3) return of_plane(bits, packed);
  return of_plane(2, packed) | of_plane(1, packed + plane_bytes(2, rows, inner)) << 2;
}

/// The code of (row, index) of either kind.
inline int packed_code(Codes kind, int bits, const std::uint8_t *packed, Index rows, Index inner,
                       Index row, Index index) {
  return kind == Codes::trellis ? packed_trellis_code(bits, packed, rows, inner, row, index)
                                : packed_code(bits, packed, rows, inner, row, index);
}

/// Packs codes of either kind.
inline void pack_codes(Codes kind, int bits, const std::uint8_t *codes, Index inner_stride, Index rows,
                       Index inner, std::uint8_t *packed) {
  if (kind == Codes::trellis) return pack_trellis(bits, codes, inner_stride, rows, inner, packed);
  pack_codes(bits, codes, inner_stride, rows, inner, packed);
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
