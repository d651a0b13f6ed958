#pragma once

// Rows from one type of element to another, and sixteen lanes of codes as
// floats: the compiler's vector types, one AVX-512 register, two of AVX2, four
// of SSE or NEON.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "squat/coding/codes.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/cpu/kernels/float_vector.hpp"
#include "squat/cpu/stored_rows.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

typedef float FloatLanes __attribute__((vector_size(64)));
typedef std::uint32_t WordLanes __attribute__((vector_size(64)));
typedef std::int32_t IntLanes __attribute__((vector_size(64)));

template <class Vector>
inline void load(const void *from, Vector &to) {
  std::memcpy(&to, from, sizeof to);
}

/// Element i of every lane's quadruple-packed codes: (words >> shift) & mask as
/// floats.
template <int Bits>
inline void extract_codes(const WordLanes &words, int shift, FloatLanes &codes) {
  constexpr std::uint32_t mask = (1u << Bits) - 1;
  const IntLanes code =
      __builtin_convertvector((words >> static_cast<std::uint32_t>(shift)) & mask, IntLanes);
  codes = __builtin_convertvector(code, FloatLanes);
}

/// `count` elements, a multiple of 16, of one type as another's.
template <RowElement From, Element To>
inline void convert_row(const From *from, Index count, To *to) {
  if constexpr (std::is_same_v<From, To>) {
    std::copy_n(from, count, to);
  } else {
    for (Index i = 0; i < count; i += float_lanes) store_floats(to + i, load_floats(from + i));
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
