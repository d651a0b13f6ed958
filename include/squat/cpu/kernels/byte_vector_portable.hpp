#pragma once

// byte_vector.hpp in plain C++: the reference of every other version.

#include <cstdint>
#include <cstring>

#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

typedef std::uint8_t ByteVector __attribute__((vector_size(16)));
typedef std::int32_t SumVector __attribute__((vector_size(16)));
inline constexpr Index vector_lanes = 4;
inline constexpr int rows_of_decode = 4, phases_of_decode = 4;

inline ByteVector repeat_table(const void *x) {
  ByteVector bytes;
  std::memcpy(&bytes, x, sizeof bytes);
  return bytes;
}

inline ByteVector load_lanes(const std::uint8_t *x, Index) { return repeat_table(x); }

inline ByteVector repeat_lane(const void *x) {
  std::int32_t four;
  std::memcpy(&four, x, sizeof four);
  const SumVector lanes = SumVector{} + four;
  return repeat_table(&lanes);
}

inline ByteVector lane_before(ByteVector x, const std::uint8_t *first) {
  std::uint8_t bytes[20];
  std::memcpy(bytes, first, 4);
  std::memcpy(bytes + 4, &x, sizeof x);
  return repeat_table(bytes);
}

template <int Shift>
inline ByteVector bits_from(ByteVector x, int mask) {
  if constexpr (Shift > 0) x >>= static_cast<std::uint8_t>(Shift);
  if constexpr (Shift < 0) x <<= static_cast<std::uint8_t>(-Shift);
  return x & static_cast<std::uint8_t>(mask);
}

inline ByteVector look_up(ByteVector table, ByteVector x) {
  ByteVector found;
  for (int i = 0; i < 16; ++i) found[i] = table[x[i]];
  return found;
}

template <int Bit>
inline ByteVector where_bit(ByteVector x, ByteVector a, ByteVector b) {
  const ByteVector set = 0 - (x >> static_cast<std::uint8_t>(Bit) & 1);
  return (b & set) | (a & ~set);
}

inline SumVector no_sum() { return SumVector{}; }

template <class Weight>
inline void add_level_products(SumVector &sum, ByteVector first, ByteVector second,
                               ByteVector first_weights, ByteVector second_weights) {
  for (int i = 0; i < 16; ++i) {
    sum[i / 4] += static_cast<std::int8_t>(first[i]) * static_cast<Weight>(first_weights[i]) +
                  static_cast<std::int8_t>(second[i]) * static_cast<Weight>(second_weights[i]);
  }
}

inline void add_four_sums(float *to, const SumVector (&sums)[4], float multiplier, float offset, Index) {
  for (int i = 0; i < 16; ++i) to[i] += offset + multiplier * static_cast<float>(sums[i % 4][i / 4]);
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
