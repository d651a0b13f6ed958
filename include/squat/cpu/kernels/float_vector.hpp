#pragma once

// The widest vector of floats of the instruction set, for kernels over exact
// rows.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

#if defined(SQUAT_CPU_AVX2)
#include <immintrin.h>
#elif defined(SQUAT_CPU_NEON)
#include <arm_neon.h>
#endif

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

#if defined(SQUAT_CPU_AVX512)

using FloatVector = __m512;
inline FloatVector load_floats(const float *from) { return _mm512_loadu_ps(from); }
inline FloatVector load_floats(const half *from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
}
inline FloatVector load_floats(const bfloat16 *from) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}
inline FloatVector load_floats(const std::int8_t *from) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
}
inline void store_floats(float *to, FloatVector x) { _mm512_storeu_ps(to, x); }
inline void store_floats(half *to, FloatVector x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline FloatVector broadcast(float x) { return _mm512_set1_ps(x); }
inline FloatVector multiply_add(FloatVector a, FloatVector b, FloatVector c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline FloatVector greater_of(FloatVector a, FloatVector b) { return _mm512_max_ps(a, b); }
inline FloatVector lesser_of(FloatVector a, FloatVector b) { return _mm512_min_ps(a, b); }

#elif defined(SQUAT_CPU_AVX2)

using FloatVector = __m256;
inline FloatVector load_floats(const float *from) { return _mm256_loadu_ps(from); }
inline FloatVector load_floats(const half *from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}
inline FloatVector load_floats(const bfloat16 *from) {
  const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}
inline FloatVector load_floats(const std::int8_t *from) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from))));
}
inline void store_floats(float *to, FloatVector x) { _mm256_storeu_ps(to, x); }
inline void store_floats(half *to, FloatVector x) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline FloatVector broadcast(float x) { return _mm256_set1_ps(x); }
inline FloatVector multiply_add(FloatVector a, FloatVector b, FloatVector c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline FloatVector greater_of(FloatVector a, FloatVector b) { return _mm256_max_ps(a, b); }
inline FloatVector lesser_of(FloatVector a, FloatVector b) { return _mm256_min_ps(a, b); }

#elif defined(SQUAT_CPU_NEON)

using FloatVector = float32x4_t;
inline FloatVector load_floats(const float *from) { return vld1q_f32(from); }
inline FloatVector load_floats(const half *from) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t *>(from))));
}
inline FloatVector load_floats(const bfloat16 *from) {
  const uint16x4_t words = vld1_u16(reinterpret_cast<const std::uint16_t *>(from));
  return vreinterpretq_f32_u32(vshll_n_u16(words, 16));
}
inline FloatVector load_floats(const std::int8_t *from) {
  std::int32_t bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  const int16x8_t words = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes)));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
}
inline void store_floats(float *to, FloatVector x) { vst1q_f32(to, x); }
inline void store_floats(half *to, FloatVector x) {
  vst1_u16(reinterpret_cast<std::uint16_t *>(to), vreinterpret_u16_f16(vcvt_f16_f32(x)));
}
inline FloatVector broadcast(float x) { return vdupq_n_f32(x); }
inline FloatVector multiply_add(FloatVector a, FloatVector b, FloatVector c) {
  return vfmaq_f32(c, a, b);
}
inline FloatVector greater_of(FloatVector a, FloatVector b) { return vmaxq_f32(a, b); }
inline FloatVector lesser_of(FloatVector a, FloatVector b) { return vminq_f32(a, b); }

#else

typedef float FloatVector __attribute__((vector_size(16)));
typedef std::uint32_t WordVector __attribute__((vector_size(16)));
typedef std::uint16_t HalfWordVector __attribute__((vector_size(8)));

inline FloatVector load_floats(const float *from) {
  FloatVector x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline FloatVector words_to_floats(WordVector words) {
  FloatVector x;
  std::memcpy(&x, &words, sizeof x);
  return x;
}
inline WordVector load_words(const void *from) {
  HalfWordVector words;
  std::memcpy(&words, from, sizeof words);
  return __builtin_convertvector(words, WordVector);
}
/// The exponent of a float16 moved into a float's place is short by 112: one
/// multiplication mends it, for subnormals too. What the cache holds is finite.
inline FloatVector load_floats(const half *from) {
  const WordVector words = load_words(from);
  const FloatVector scaled = words_to_floats((words & 0x7fffu) << 13) * 0x1p112f;
  WordVector magnitude;
  std::memcpy(&magnitude, &scaled, sizeof magnitude);
  return words_to_floats(magnitude | (words & 0x8000u) << 16);
}
/// bfloat16 is the upper half of a float.
inline FloatVector load_floats(const bfloat16 *from) { return words_to_floats(load_words(from) << 16); }
inline FloatVector load_floats(const std::int8_t *from) {
  typedef std::int8_t Bytes __attribute__((vector_size(4)));
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, FloatVector);
}
inline void store_floats(float *to, FloatVector x) { std::memcpy(to, &x, sizeof x); }
inline void store_floats(half *to, FloatVector x) {
  for (int lane = 0; lane < 4; ++lane) to[lane] = static_cast<half>(x[lane]);
}
inline FloatVector broadcast(float x) { return FloatVector{x, x, x, x}; }
inline FloatVector multiply_add(FloatVector a, FloatVector b, FloatVector c) { return a * b + c; }
inline FloatVector greater_of(FloatVector a, FloatVector b) { return a > b ? a : b; }
inline FloatVector lesser_of(FloatVector a, FloatVector b) { return a < b ? a : b; }

#endif

/// Lanes of a FloatVector.
inline constexpr Index float_lanes = sizeof(FloatVector) / sizeof(float);

inline void store_floats(bfloat16 *to, FloatVector x) {
  float values[float_lanes];
  store_floats(values, x);
  for (Index lane = 0; lane < float_lanes; ++lane) to[lane] = static_cast<bfloat16>(values[lane]);
}

/// 1 / x of every lane, to 3e-7 of it, for magnitudes from 2^-100 to 2^100.
inline FloatVector reciprocal(FloatVector x) {
#if defined(SQUAT_CPU_AVX512)
  const FloatVector guess = _mm512_rcp14_ps(x);
  return guess * (broadcast(2) - x * guess);  // a step of Newton's doubles the digits
#elif defined(SQUAT_CPU_AVX2)
  const FloatVector guess = _mm256_rcp_ps(x);
  return guess * (broadcast(2) - x * guess);
#else
  return broadcast(1) / x;
#endif
}

/// |x| of every lane.
inline FloatVector magnitude(FloatVector x) {
#if defined(SQUAT_CPU_AVX512)
  return _mm512_abs_ps(x);
#else
  return greater_of(x, broadcast(0) - x);
#endif
}

/// x, held in a register: GCC would fold its load into every operation that takes
/// it, and the loads of a kernel would outnumber its multiply-adds.
inline FloatVector in_register(FloatVector x) {
#if defined(SQUAT_CPU_AVX2)
  asm("" : "+v"(x));
#endif
  return x;
}

/// The sum of the lanes.
inline float sum_lanes(FloatVector x) {
#if defined(SQUAT_CPU_AVX512)
  return _mm512_reduce_add_ps(x);
#else
  float lane_values[float_lanes], sum = 0;
  store_floats(lane_values, x);
  for (float value : lane_values) sum += value;
  return sum;
#endif
}

/// The largest of the lanes.
inline float largest_lane(FloatVector x) {
#if defined(SQUAT_CPU_AVX512)
  return _mm512_reduce_max_ps(x);
#else
  float lane_values[float_lanes];
  store_floats(lane_values, x);
  return *std::max_element(lane_values, lane_values + float_lanes);
#endif
}

#if defined(SQUAT_CPU_AVX512)
/// operation() over the lanes of each of four vectors.
template <class Operation>
inline void reduce_each(const __m512 *x, float *results, Operation &&operation) {
  // Within each 128 bits: a0 + a2, b0 + b2, a1 + a3, b1 + b3, then a, b, c, d.
  const __m512 ab = operation(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  const __m512 cd = operation(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  const __m512 quads = operation(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m512 halves = operation(quads, _mm512_shuffle_f32x4(quads, quads, 0x4e));
  const __m512 all = operation(halves, _mm512_shuffle_f32x4(halves, halves, 0xb1));
  _mm_storeu_ps(results, _mm512_castps512_ps128(all));
}
#endif

/// The largest of the lanes of each of four vectors.
inline void largest_of_each(const FloatVector *x, float *largest) {
#if defined(SQUAT_CPU_AVX512)
  reduce_each(x, largest, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
#else
  for (int i = 0; i < 4; ++i) largest[i] = largest_lane(x[i]);
#endif
}

/// The sums of the lanes of four vectors.
inline void sum_each(const FloatVector *x, float *sums) {
#if defined(SQUAT_CPU_AVX512)
  reduce_each(x, sums, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
#elif defined(SQUAT_CPU_AVX2)
  const __m256 pairs = _mm256_hadd_ps(x[0], x[1]);
  const __m256 quads = _mm256_hadd_ps(pairs, _mm256_hadd_ps(x[2], x[3]));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1)));
#elif defined(SQUAT_CPU_NEON)
  for (int i = 0; i < 4; ++i) sums[i] = vaddvq_f32(x[i]);
#else
  for (int i = 0; i < 4; ++i) sums[i] = (x[i][0] + x[i][1]) + (x[i][2] + x[i][3]);
#endif
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
