#pragma once

// Where the codes of lanes lie, as the kernels of dot_codes.hpp go through them.

#include <cstddef>
#include <cstdint>

#include "squat/coding/codes.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/cpu/kernels/prefetch.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// A plane of codes (coding/codes.hpp) from a block of 16 lanes on.
struct LanePlane {
  const std::uint8_t *data = nullptr;
  Index run_bytes = 0;  ///< from the codes of one block of lanes to the next one's

  LanePlane from(Index lane) const { return {data + lane / lanes * run_bytes, run_bytes}; }
};

/// The codes of lanes: their plane, and the plane of the third bits of 3-bit codes.
struct LaneCodes {
  LanePlane plane;
  LanePlane high;

  LaneCodes from(Index lane) const { return {plane.from(lane), high.from(lane)}; }
};

/// Inner indices that whole blocks of codes hold: of 3-bit ones a block of the third bits, and two of
/// the others.
template <int Bits>
inline constexpr Index dot_inner = Bits == 3 ? block_inner<1> : block_inner<Bits>;

/// The codes behind those of dot_inner.
template <int Bits>
LaneCodes next_block(LaneCodes codes) {
  codes.plane.data += (Bits == 3 ? 2 : 1) * block_bytes;
  if constexpr (Bits == 3) codes.high.data += block_bytes;
  return codes;
}

/// Asks for the codes `ahead` of those of dot_inner.
template <int Bits>
void prefetch_block(const LaneCodes &codes, std::ptrdiff_t ahead) {
  prefetch_ahead(codes.plane.data, ahead);
  if constexpr (Bits == 3) {
    prefetch_ahead(codes.plane.data + block_bytes, ahead);
    prefetch_ahead(codes.high.data, ahead);
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
