#pragma once

// Rows of numbers as trellis codes (trellis.hpp): a group of a channel's tokens about its mean, or a
// rotated value.
//
// A row is searched at the scale that gives it the deviation of the levels' Gaussians, then made
// unbiased by gain = <x, x> / <x, x^> as scalar codes are (affine.hpp, symmetric.hpp), about the mean
// where there is one.

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "squat/coding/affine.hpp"
#include "squat/coding/chunks.hpp"
#include "squat/coding/trellis.hpp"
#include "squat/coding/trellis_search.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Quantizes rows of up to `longest` numbers, in memory that is handed over.
class TrellisQuantizer {
 public:
  /// Of memory, aligned to 64 bytes.
  static constexpr Index bytes(Index longest) {
    return TrellisSearch::bytes(longest) + 2 * search_rows * longest;
  }

  TrellisQuantizer(void *memory, Index longest)
      : search_(memory, longest),
        levels_(static_cast<std::int8_t *>(memory) + TrellisSearch::bytes(longest)),
        codes_(reinterpret_cast<std::uint8_t *>(levels_ + search_rows * longest)) {}

  /// Codes of 1 to 3 bits of x [rows, count], every row about its mean; count: a multiple of 32. codes:
  /// likewise; scales: [rows]. Returns the squared error.
  float quantize_affine(const float *x, Index rows, Index count, int bits, std::uint8_t *codes,
                        AffineScale *scales) {
    return quantize<true>(x, rows, count, bits, codes, scales);
  }

  /// The same about 0: every zero is 0.
  float quantize_symmetric(const float *x, Index rows, Index count, int bits, std::uint8_t *codes,
                           AffineScale *scales) {
    return quantize<false>(x, rows, count, bits, codes, scales);
  }

 private:
  /// A row, and how it is coded.
  struct Row {
    const float *x;
    std::uint8_t *codes;
    AffineScale *scale;
    float mean, squares;  // about the mean, which is 0 for rows about 0
    float error;          // infinite while there are no codes
  };

  template <bool AboutMean>
  float quantize(const float *x, Index rows, Index count, int bits, std::uint8_t *codes,
                 AffineScale *scales) {
    switch (bits) {
      case 1:
        return quantize<1, AboutMean>(x, rows, count, codes, scales);
      case 2:
        return quantize<2, AboutMean>(x, rows, count, codes, scales);
      default:
        SQUAT_ASSERT(bits == 3);
        return quantize<3, AboutMean>(x, rows, count, codes, scales);
    }
  }

  /// Rows that err as Gaussians do are searched once. The others wait until there are enough for a
  /// search at every other scale.
  template <int Bits, bool AboutMean>
  float quantize(const float *x, Index rows, Index count, std::uint8_t *codes, AffineScale *scales) {
    SQUAT_ASSERT(count % trellis_row == 0);
    float error = 0;
    Row block[search_rows], odd[search_rows];
    Index odd_rows = 0;
    const auto search_odd = [&] {
      for (const float factor : other_scales) search<Bits, AboutMean>(odd, odd_rows, count, factor);
      for (Index row = 0; row < odd_rows; ++row) error += odd[row].error;
      odd_rows = 0;
    };
    for (Index first = 0; first < rows; first += search_rows) {
      const Index taken = std::min(search_rows, rows - first);
      for (Index row = 0; row < taken; ++row) {
        const Index at = first + row;
        block[row] = row_of<AboutMean>(x + at * count, count, codes + at * count, scales + at);
      }
      search<Bits, AboutMean>(block, taken, count, 1);
      for (const Row &row : std::span(block, static_cast<std::size_t>(taken))) {
        if (row.error <= usual_error(Bits) * row.squares) {
          error += row.error;
          continue;
        }
        odd[odd_rows++] = row;
        if (odd_rows == search_rows) search_odd();
      }
    }
    search_odd();
    return error;
  }

  template <bool AboutMean>
  static Row row_of(const float *x, Index count, std::uint8_t *codes, AffineScale *scale) {
    float mean = 0;
    if constexpr (AboutMean) {
      const float sum = sum_chunks(count, [&](Index i) { return load_chunk(x + i); }).sum();
      mean = sum / static_cast<float>(count);
    }
    return {
        x, codes, scale, mean, constant_error(x, count, mean), std::numeric_limits<float>::infinity()};
  }

  /// Codes rows at `factor` times the scale of Gaussians, and keeps what errs less than before.
  template <int Bits, bool AboutMean>
  void search(Row *rows, Index row_count, Index count, float factor) {
    if (row_count == 0) return;
    constexpr float deviation = trellis_code(Bits).deviation;
    const auto step = [&](const Row &row) {  // what a level is worth
      return factor * std::sqrt(row.squares / static_cast<float>(count)) / deviation;
    };
    for (Index r = 0; r < row_count; ++r) {
      const Row &row = rows[r];
      const float inverse = row.squares > 0 ? 1 / step(row) : 0.0f;
      for (Index i = 0; i < count; ++i) {
        search_.template set<Bits>(r, i, (row.x[i] - row.mean) * inverse);
      }
    }
    search_.template run<Bits>(row_count, count, codes_, levels_);
    for (Index r = 0; r < row_count; ++r) {
      Row &row = rows[r];
      const std::int8_t *levels = levels_ + r * count;
      const AffineScale scale = fit<AboutMean>(row, count, levels, 2 * step(row));
      const float error = squared_error<AboutMean>(row.x, count, levels, scale);
      if (!(error < row.error)) continue;
      row.error = error;
      *row.scale = scale;
      std::copy_n(codes_ + r * count, count, row.codes);
    }
  }

  /// The zero and the unbiased scale; most: what a level is worth at most.
  template <bool AboutMean>
  static AffineScale fit(const Row &row, Index count, const std::int8_t *levels, float most) {
    const auto [products, sum] = sum_terms<2>(count, [&](Index i, int n) -> Chunk {
      const Chunk level = load_levels(levels + i);
      return n == 0 ? Chunk((load_chunk(row.x + i) - row.mean) * level) : level;
    });
    const float gain = products > 0 ? std::min(row.squares / products, most) : 0.0f;
    const half scale = to_half_saturated(gain * trellis_unit);
    if constexpr (!AboutMean) return {half(0.0f), scale};
    const float code = trellis_middle + sum / static_cast<float>(count) / trellis_unit;
    return {to_half_saturated(row.mean - static_cast<float>(scale) * code), scale};
  }

  template <bool AboutMean>
  static float squared_error(const float *x, Index count, const std::int8_t *levels, AffineScale fit) {
    const float scale = static_cast<float>(fit.scale), step = scale / trellis_unit;
    const float zero = AboutMean ? static_cast<float>(fit.zero) + trellis_middle * scale : 0.0f;
    return sum_chunks(count,
                      [&](Index i) -> Chunk {
                        return (zero + step * load_levels(levels + i) - load_chunk(x + i)).square();
                      })
        .sum();
  }

  static Chunk load_levels(const std::int8_t *levels) {
    return Eigen::Map<const Eigen::Array<std::int8_t, chunk_size, 1>>(levels).cast<float>();
  }

  /// Scales that other rows than Gaussian ones are tried at: above 1 for few large numbers among small
  /// ones.
  static constexpr std::array<float, 3> other_scales = {.75f, 1.35f, 2.0f};

  /// Of the squares of a row, a fifth more than of Gaussian ones.
  static constexpr float usual_error(int bits) { return 1.2f * trellis_code(bits).error; }

  TrellisSearch search_;
  std::int8_t *levels_;  // [search_rows, longest]
  std::uint8_t *codes_;  // likewise
};

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
