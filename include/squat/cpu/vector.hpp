#pragma once

// Sixteen lanes of float or of 32-bit integers, as the compiler's vector types:
// one AVX-512 register, two of AVX2, four of SSE or NEON.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "squat/config.hpp"
#include "squat/cpu/float_vector.hpp"
#include "squat/instruction_set.hpp"
#include "squat/quantize/codes.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

typedef float FloatLanes __attribute__((vector_size(64)));
typedef std::uint32_t WordLanes __attribute__((vector_size(64)));
typedef std::int32_t IntLanes __attribute__((vector_size(64)));
typedef std::uint16_t HalfWordLanes __attribute__((vector_size(32)));

template <class Vector>
inline void load(const void *from, Vector &to) {
  std::memcpy(&to, from, sizeof to);
}

inline void load_row(const float *from, FloatLanes &to) { load(from, to); }

/// bfloat16 is the upper half of a float.
inline void load_row(const bfloat16 *from, FloatLanes &to) {
  HalfWordLanes words;
  load(from, words);
  const WordLanes wide = __builtin_convertvector(words, WordLanes) << 16;
  load(&wide, to);
}

inline void load_row(const half *from, FloatLanes &to) {
#if defined(__AVX512F__)
  const __m512 wide = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
  load(&wide, to);
#elif defined(__F16C__)
  const auto *halves = reinterpret_cast<const __m128i *>(from);
  const __m256 wide[2] = {_mm256_cvtph_ps(_mm_loadu_si128(halves)),
                          _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  load(wide, to);
#else
  // The exponent of a float16 moved into a float's place is short by 112: one
  // multiplication mends it, for subnormals too. What the cache holds is
  // finite.
  HalfWordLanes words;
  load(from, words);
  const WordLanes bits = __builtin_convertvector(words, WordLanes);
  const WordLanes magnitude = (bits & 0x7fffu) << 13;
  FloatLanes scaled;
  load(&magnitude, scaled);
  scaled = scaled * 0x1p112f;
  WordLanes result;
  load(&scaled, result);
  result |= (bits & 0x8000u) << 16;
  load(&result, to);
#endif
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

/// `count` elements of a row as floats. count is a multiple of 16.
template <Element Scalar>
inline void copy_row(const Scalar *from, Index count, float *to) {
  for (Index i = 0; i < count; i += lanes) {
    FloatLanes block;
    load_row(from + i, block);
    std::memcpy(to + i, &block, sizeof block);
  }
}

/// `count` elements, a multiple of 16, of one type as another's.
template <Element From, Element To>
inline void convert_row(const From *from, Index count, To *to) {
  if constexpr (std::is_same_v<From, To>) {
    std::copy_n(from, count, to);
  } else if constexpr (std::is_same_v<To, float>) {
    copy_row(from, count, to);
  } else {
    for (Index i = 0; i < count; i += float_lanes) store_floats(to + i, load_floats(from + i));
  }
}

/// Rounds floats to what T can hold, in place.
template <Element T>
inline void round_row_to(float *row, Index count) {
  if constexpr (std::is_same_v<T, float>) return;
  T rounded[float_lanes];
  for (Index i = 0; i < count; i += float_lanes) {
    store_floats(rounded, load_floats(row + i));
    store_floats(row + i, load_floats(rounded));
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
