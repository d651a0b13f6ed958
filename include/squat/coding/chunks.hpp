#pragma once

// Rows of numbers, sixteen at a time: arrays of a fixed size that Eigen keeps in
// registers, whatever the instruction set.

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

inline constexpr Index chunk_size = 16;
using Chunk = Eigen::Array<float, chunk_size, 1>;

inline Chunk load_chunk(const float *x) { return Eigen::Map<const Chunk>(x); }

/// Calls visit(i) for the first of every chunk of `count` numbers, a multiple of
/// 16.
template <class Visit>
void for_each_chunk(Index count, Visit &&visit) {
  SQUAT_ASSERT(count % chunk_size == 0);
  for (Index i = 0; i < count; i += chunk_size) visit(i);
}

/// The sum of term(i) over the same i, lane by lane: the sum stays in a register.
template <class Term>
Chunk sum_chunks(Index count, Term &&term) {
  Chunk sum = Chunk::Zero();
  for (Index i = 0; i < count; i += chunk_size) sum += term(i);
  return sum;
}

/// The totals of several terms in one pass: term(i, n) for n < Terms. Their sums are
/// independent of each other, which hides the latency of one.
template <int Terms, class Term>
std::array<float, Terms> sum_terms(Index count, Term &&term) {
  std::array<Chunk, Terms> sums;
  for (Chunk &sum : sums) sum.setZero();
  for (Index i = 0; i < count; i += chunk_size) {
    for (int n = 0; n < Terms; ++n) sums[static_cast<std::size_t>(n)] += term(i, n);
  }
  std::array<float, Terms> totals;
  std::transform(sums.begin(), sums.end(), totals.begin(), [](const Chunk &sum) { return sum.sum(); });
  return totals;
}

/// Added to a number below 2^22 it leaves the nearest integer, ties to even, in
/// the low bits: no fraction bits are left, on every machine and in every vector
/// width.
inline constexpr float integer_bits = 12582912.0f;

/// x rounded to the nearest integer; needs |x| < 2^22.
template <class Array>
auto round_to_even(const Array &x) {
  return (x + integer_bits) - integer_bits;
}

/// Writes integers in [0, 255].
inline void store_codes(const Chunk &codes, std::uint8_t *to) {
  typedef std::uint32_t Words __attribute__((vector_size(4 * chunk_size)));
  typedef std::uint16_t HalfWords __attribute__((vector_size(2 * chunk_size)));
  typedef std::uint8_t Bytes __attribute__((vector_size(chunk_size)));
  const Chunk shifted = codes + integer_bits;
  Words words;
  std::memcpy(&words, shifted.data(), sizeof words);
  // In two steps: GCC takes a narrowing to a quarter apart.
  const Bytes bytes = __builtin_convertvector(__builtin_convertvector(words, HalfWords), Bytes);
  std::memcpy(to, &bytes, sizeof bytes);
}

inline Chunk load_codes(const std::uint8_t *codes) {
  return Eigen::Map<const Eigen::Array<std::uint8_t, chunk_size, 1>>(codes).cast<float>();
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
