#pragma once

// Packed codes of 1, 2, 3, 4 and 8 bits.
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
// first, then along the lanes. The last block of a lane may be filled in part.
//
// Codes of 3 bits are two planes, one behind the other: their low two bits as
// 2-bit codes, then their high bit as 1-bit codes.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Lanes of a block.
inline constexpr Index lanes = 16;

/// Bytes of a block.
inline constexpr Index block_bytes = 64;

/// The middle of the range of codes.
constexpr float middle_code(int bits) { return static_cast<float>((1 << bits) - 1) / 2; }

/// Inner codes of a block of one plane.
template <int Bits>
inline constexpr Index block_inner = 4 * (8 / Bits);

/// Bytes of a plane of `rows` lanes times `inner` codes. rows: a multiple of
/// 16; inner: of 4.
constexpr std::size_t plane_bytes(int bits, Index rows, Index inner) {
  const Index in_block = 32 / bits;
  return static_cast<std::size_t>(rows / lanes * ((inner + in_block - 1) / in_block) * block_bytes);
}

/// Bytes of `rows` lanes times `inner` codes.
constexpr std::size_t code_bytes(int bits, Index rows, Index inner) {
  return bits == 3 ? plane_bytes(2, rows, inner) + plane_bytes(1, rows, inner)
                   : plane_bytes(bits, rows, inner);
}

/// Calls visit.operator()<Bits>(bytes, shift) for every plane of codes: its
/// width, the first of its bytes and the bit of a code its lowest bit is.
template <class Byte, class Visit>
void for_each_plane(int bits, Byte *packed, Index rows, Index inner, Visit &&visit) {
  switch (bits) {
    case 1:
      return visit.template operator()<1>(packed, 0);
    case 2:
      return visit.template operator()<2>(packed, 0);
    case 3:
      visit.template operator()<2>(packed, 0);
      return visit.template operator()<1>(packed + plane_bytes(2, rows, inner), 2);
    case 4:
      return visit.template operator()<4>(packed, 0);
    case 8:
      return visit.template operator()<8>(packed, 0);
    default:
      SQUAT_ASSERT(false);
  }
}

/// Packs one plane: the `Bits` bits from `shift` on of `rows` lanes x `inner`
/// codes, lane l's code i at codes[l + i * inner_stride].
template <int Bits>
void pack_plane(const std::uint8_t *codes, Index inner_stride, Index rows, Index inner, int shift,
                std::uint8_t *packed) {
  typedef std::uint8_t Bytes __attribute__((vector_size(lanes)));
  typedef std::uint32_t Words __attribute__((vector_size(4 * lanes)));
  constexpr std::uint8_t mask = (1u << Bits) - 1;
  for (Index lane = 0; lane < rows; lane += lanes) {
    for (Index first = 0; first < inner; first += block_inner<Bits>, packed += block_bytes) {
      const Index parts = std::min<Index>(8 / Bits, (inner - first) / 4);
      Words words = {};
      for (Index byte = 0; byte < 4; ++byte) {
        Bytes bits = {};
        for (Index part = 0; part < parts; ++part) {
          Bytes code;
          std::memcpy(&code, codes + (first + part * 4 + byte) * inner_stride + lane, sizeof code);
          bits |= ((code >> static_cast<std::uint8_t>(shift)) & mask)
                  << static_cast<std::uint8_t>(part * Bits);
        }
        words |= __builtin_convertvector(bits, Words) << static_cast<std::uint32_t>(8 * byte);
      }
      std::memcpy(packed, &words, sizeof words);
    }
  }
}

/// Code `i` of a lane in a plane of `inner` inner indices.
constexpr int plane_code(int bits, const std::uint8_t *plane, Index inner, Index lane, Index i) {
  const Index in_block = 32 / bits, blocks = (inner + in_block - 1) / in_block;
  const Index block = lane / lanes * blocks + i / in_block;
  const int byte = plane[block * block_bytes + lane % lanes * 4 + i % 4];
  return byte >> i % in_block / 4 * bits & ((1 << bits) - 1);
}

/// The same of packed codes of any width.
constexpr int packed_code(int bits, const std::uint8_t *packed, Index rows, Index inner, Index lane,
                          Index i) {
  if (bits != 3) return plane_code(bits, packed, inner, lane, i);
  return plane_code(2, packed, inner, lane, i) |
         plane_code(1, packed + plane_bytes(2, rows, inner), inner, lane, i) << 2;
}

/// Packs `rows` lanes x `inner` codes of `bits` bits, lane l's code i at codes[l
/// + i * inner_stride].
inline void pack_codes(int bits, const std::uint8_t *codes, Index inner_stride, Index rows, Index inner,
                       std::uint8_t *packed) {
  SQUAT_ASSERT(rows % lanes == 0 && inner % 4 == 0);
  for_each_plane(bits, packed, rows, inner, [&]<int Bits>(std::uint8_t *plane, int shift) {
    pack_plane<Bits>(codes, inner_stride, rows, inner, shift, plane);
  });
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
