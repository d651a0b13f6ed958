#pragma once

// Packed codes of 2, 4 and 8 bits.
//
// A block of codes has 16 lanes and an inner extent. For keys a lane is a token
// and the inner extent runs over channels; for values a lane is a channel and
// the inner extent runs over tokens. Either way the consumer forms sum_i
// weight_i * code[lane][i] for 16 lanes at once, so both share one layout:
//
//   64 bytes hold 16 lanes x 4 bytes; a lane's four bytes hold 4 * (8 / Bits)
//   consecutive inner codes, inner index r in byte r % 4 at bit (r / 4) * Bits.
//
// Shifting all 64 bytes by one multiple of Bits and masking leaves four
// consecutive inner codes of every lane, one a byte: the operand of an 8-bit
// multiply-add over quadruples. Blocks follow each other along the inner extent
// first, then along the lanes.

#include <cstddef>
#include <cstdint>

#include "squat/config.hpp"

namespace squat {

/// Lanes of a block.
inline constexpr Index lanes = 16;

/// Bytes of a block.
inline constexpr Index block_bytes = 64;

/// Inner codes of a block.
template <int Bits>
inline constexpr Index block_inner = 4 * (8 / Bits);

/// Bytes of `rows` lanes times `inner` codes; both extents are whole blocks.
template <int Bits>
constexpr std::size_t code_bytes(Index rows, Index inner) {
  return static_cast<std::size_t>(rows * inner * Bits / 8);
}

/// Packs `rows` lanes x `inner` codes, lane l's code i at codes[l * lane_stride
/// + i * inner_stride].
template <int Bits>
void pack_codes(const std::uint8_t *codes, Index lane_stride, Index inner_stride, Index rows,
                Index inner, std::uint8_t *packed) {
  static_assert(Bits == 2 || Bits == 4 || Bits == 8);
  SQUAT_ASSERT(rows % lanes == 0 && inner % block_inner<Bits> == 0);
  for (Index lane0 = 0; lane0 < rows; lane0 += lanes) {
    for (Index inner0 = 0; inner0 < inner; inner0 += block_inner<Bits>, packed += block_bytes) {
      for (Index lane = 0; lane < lanes; ++lane) {
        const std::uint8_t *code = codes + (lane0 + lane) * lane_stride + inner0 * inner_stride;
        for (Index byte = 0; byte < 4; ++byte) {
          unsigned bits = 0;
          for (Index part = 0; part < 8 / Bits; ++part) {
            bits |= static_cast<unsigned>(code[(part * 4 + byte) * inner_stride]) << (part * Bits);
          }
          packed[lane * 4 + byte] = static_cast<std::uint8_t>(bits);
        }
      }
    }
  }
}

/// The inverse of pack_codes.
template <int Bits>
void unpack_codes(const std::uint8_t *packed, Index rows, Index inner, std::uint8_t *codes,
                  Index lane_stride, Index inner_stride) {
  static_assert(Bits == 2 || Bits == 4 || Bits == 8);
  constexpr unsigned mask = (1u << Bits) - 1;
  for (Index lane0 = 0; lane0 < rows; lane0 += lanes) {
    for (Index inner0 = 0; inner0 < inner; inner0 += block_inner<Bits>, packed += block_bytes) {
      for (Index lane = 0; lane < lanes; ++lane) {
        std::uint8_t *code = codes + (lane0 + lane) * lane_stride + inner0 * inner_stride;
        for (Index r = 0; r < block_inner<Bits>; ++r) {
          const unsigned byte = packed[lane * 4 + r % 4];
          code[r * inner_stride] = static_cast<std::uint8_t>((byte >> (r / 4 * Bits)) & mask);
        }
      }
    }
  }
}

}  // namespace squat
