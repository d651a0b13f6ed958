#pragma once

// Registers of bytes that trellis codes are decoded in, and of the 32-bit sums that their levels add up
// to: one file an instruction set. A lane is four bytes.
//
// - vector_lanes: lanes of a register.
// - rows_of_decode, phases_of_decode: rows of sums, and phases of a byte (trellis_levels.hpp), that
// registers are enough for at a time.
// - load_lanes(x, count): lanes from memory, 0 for those from `count` on.
// - lane_before(x, first): every lane takes the one before it, the first the four bytes at `first`.
// - repeat_lane(x), repeat_table(x): four bytes, or sixteen, over and over.
// - bits_from<Shift>(x, m): every byte (x >> Shift) & m, to the left where Shift is negative; bits that
// m keeps must not come from a neighbour.
// - look_up(table, x): every byte x < 16 of a repeated table.
// - where_bit<Bit>(x, a, b): every byte b where x has the bit, a where not.
// - add_level_products<Weight>(sum, x, y, u, v): the four products of every lane of levels x and weights
// u, and of y and v; levels of signed weights count from -32, those of unsigned weights from 0
// (level_origin).
// - add_four_sums(to, sums, multiplier, offset, count): to[4 l + f] += offset + multiplier * sums[f]
// lane l.
//
// Registers combine by | and ^.

#include <cstdint>
#include <type_traits>

#include "squat/core/instruction_set.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// What levels count from where they meet weights of that type. Instructions multiply unsigned bytes by
/// signed ones, so that levels are unsigned where weights have a sign. Four products fit 16 bits either
/// way: 4 * 63 * 127 and 4 * 31 * 255.
template <class Weight>
inline constexpr int level_origin = std::is_signed_v<Weight> ? -32 : 0;

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE

#if defined(SQUAT_CPU_AVX512_VNNI)
#include "squat/cpu/kernels/byte_vector_avx512.hpp"
#elif defined(SQUAT_CPU_AVX2)
#include "squat/cpu/kernels/byte_vector_avx2.hpp"
#elif defined(SQUAT_CPU_NEON)
#include "squat/cpu/kernels/byte_vector_neon.hpp"
#else
#include "squat/cpu/kernels/byte_vector_portable.hpp"
#endif
