#pragma once

// Trellis codes of 1 to 3 bits (Marcellin and Fischer, Trellis coded quantization, 1990; the decoder
// that looks levels up by a window of codes as in Tseng et al., QTIP, 2024): the level of an element
// hangs on its own code and on those before it, so that few bits choose among many levels.
//
//   window_i = the newest eight trellis bits: four codes of 2 bits, or eight of 1
//   index_i  = (window_i & 15) xor hash(window_i >> 4)
//   x_i ~ zero + scale * (middle + level[index_i] / unit)
//
// A row is circular: its first windows begin with its last codes, so that exactly `bits` bits an element
// are stored. Codes of 3 bits are 2-bit trellis codes in their low bits; the high bit takes one of two
// levels of the index and is in no window. The newest bits of a window select among distinct levels
// whatever came before, since the hash is only added to them.
//
// On Gaussians, relative squared error after the unbiased gain (symmetric.hpp) beside scalar codes: .081
// and .13 at 2 bits, .0202 and .037 at 3, .39 and .57 at 1.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "squat/coding/coding.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// The widest trellis codes: there is little to gain above.
inline constexpr int most_trellis_bits = 3;

/// What codes of a width are where trellis codes are asked for.
constexpr Codes codes_of_width(Codes codes, int bits) {
  return bits <= most_trellis_bits ? codes : Codes::scalar;
}

/// Levels count in units of 1 / trellis_unit, so that a scale is about a row's deviation: six bits lose
/// half a per cent at 3 bits and nothing below, and four products of such bytes with 8-bit weights fit
/// 16 bits.
inline constexpr int trellis_unit = 16;
inline constexpr int largest_level = 31;

/// As those of scalar codes, the numbers that belong to a zero and a scale begin at 0 and have a middle.
/// Symmetric values count from there.
inline constexpr int trellis_middle = 2;

/// Rows of trellis codes have a multiple of so many elements.
inline constexpr Index trellis_row = 32;

/// The codes of one width.
struct TrellisCode {
  int step;                            ///< trellis bits of an element: what a window moves on by
  float deviation;                     ///< of the Gaussians they are made for, in levels
  float error;                         ///< squared, of unit variance, after the unbiased gain
  std::array<std::int8_t, 32> levels;  ///< by index, plus 16 where the third bit is set
};

inline constexpr int window_bits = 8;

/// Bit j of the hash of four bits h is the parity of h & hash_masks[j]. Of a window of 2-bit codes, c0
/// the newest, the high two bits of the index are c1 xor c2, the low two c0 xor c2 xor c3. Where no
/// byte shuffle looks the hash up, a word w of such codes, newer ones lower, has it for all at once:
/// u = w xor (w >> 2) holds the high halves, w xor (u >> 4) the low ones. It errs no more than the best
/// of some thousand masks did.
inline constexpr std::array<std::uint8_t, 4> hash_masks = {5, 10, 1, 2};

/// The hash of every four bits.
inline constexpr std::array<std::uint8_t, 16> trellis_hash = [] {
  std::array<std::uint8_t, 16> hash{};
  for (unsigned h = 0; h < hash.size(); ++h) {
    for (unsigned j = 0; j < hash_masks.size(); ++j) {
      const auto parity = static_cast<unsigned>(std::popcount(h & hash_masks[j]) & 1);
      hash[h] = static_cast<std::uint8_t>(hash[h] | parity << j);
    }
  }
  return hash;
}();

constexpr unsigned trellis_index(unsigned window) { return (window & 15) ^ trellis_hash[window >> 4]; }

/// By bits - 1. Lloyd's iteration over paths of least squared error through Gaussian rows, from many
/// beginnings; then the integers near its levels that err least in circular rows of 128.
inline constexpr std::array<TrellisCode, most_trellis_bits> trellis_codes = {
    {{1, 16.621f, .39f, {12, -6, -10, 16, -16, 5, 4, -29, 7, -14, -15, 8, -4, 29, 16, -5}},
     {2, 14.040f, .081f, {6, 19, -4, -16, -11, 30, 10, 0, -6, -20, 17, 4, 0, 11, -30, -10}},
     {2, 11.856f, .0202f, {20,  6,  -6, 2,   2,   13, 7,  -15, 10, 5,  -13, -24, 24, -20, 0, 4,
                           -11, -2, 11, -17, -31, 31, -9, -3,  1,  -7, -3,  17,  15, -5,  9, -10}}}};

constexpr const TrellisCode &trellis_code(int bits) {
  return trellis_codes[static_cast<std::size_t>(bits - 1)];
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
