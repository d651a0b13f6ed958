// Packed codes come back as they went in, at the place the layout promises.

#include "squat/coding/codes.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace squat::test::codes_test {
namespace {

/// Codes as the layout says they lie, lane l's code i at codes[l + i * rows].
std::vector<std::uint8_t> unpack(int bits, const std::vector<std::uint8_t> &packed, Index rows,
                                 Index inner) {
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * inner), 0);
  for_each_plane(bits, packed.data(), rows, inner, [&]<int Bits>(const std::uint8_t *plane, int shift) {
    const Index blocks = (inner + block_inner<Bits> - 1) / block_inner<Bits>;
    for (Index lane = 0; lane < rows; ++lane) {
      for (Index i = 0; i < inner; ++i) {
        const Index block = lane / lanes * blocks + i / block_inner<Bits>;
        const Index r = i % block_inner<Bits>;
        const unsigned byte = plane[block * block_bytes + lane % lanes * 4 + r % 4];
        const unsigned code = (byte >> (r / 4 * Bits)) & ((1u << Bits) - 1);
        codes[static_cast<std::size_t>(lane + i * rows)] |= static_cast<std::uint8_t>(code << shift);
      }
    }
  });
  return codes;
}

void round_trip(int bits, Index rows, Index inner) {
  std::mt19937 random(3);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * inner));
  for (auto &code : codes) code = static_cast<std::uint8_t>(random() % (1u << bits));
  std::vector<std::uint8_t> packed(code_bytes(bits, rows, inner));
  pack_codes(bits, codes.data(), rows, rows, inner, packed.data());
  EXPECT_EQ(codes, unpack(bits, packed, rows, inner)) << bits << " bits, " << rows << " x " << inner;
}

TEST(Codes, RoundTripAtEveryWidthAndShape) {
  for (Index rows : {16, 32, 128, 1024}) {
    for (Index inner : {4, 8, 16, 24, 32, 48, 80, 256}) {
      for (int bits : {1, 2, 3, 4, 8}) round_trip(bits, rows, inner);
    }
  }
}

TEST(Codes, FourNeighboursOfALaneStandInItsFourBytes) {
  std::vector<std::uint8_t> codes(16 * 16, 0), packed(64);
  codes[6 * 16 + 5] = 3;  // lane 5, inner 6: byte 6 % 4 of the lane, bit pair 6 / 4
  pack_codes(2, codes.data(), 16, 16, 16, packed.data());
  for (std::size_t byte = 0; byte < 64; ++byte) EXPECT_EQ(packed[byte], byte == 5 * 4 + 2 ? 3 << 2 : 0);
}

TEST(Codes, ThreeBitsTakeThreeEighthsOfAByte) {
  EXPECT_EQ(code_bytes(3, 64, 128), 64u * 128 * 3 / 8);
  EXPECT_EQ(code_bytes(3, 16, 48),
            16u * 48 / 4 + 16u * 64 / 8);  // the plane of high bits ends in half a block
}

}  // namespace
}  // namespace squat::test::codes_test
