#pragma once

// What a layer's coding is, in the form that every backend reads and writes: what snapshots keep of it.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "squat/coding/rounded_matrix.hpp"
#include "squat/core/config.hpp"

namespace squat {

/// Neighbouring coordinates that are coded at one width.
struct WidthRecord {
  std::int32_t bits = 0;
  std::int32_t channels = 0;
};

/// The statistics of a KV head while they are gathered: the sums as HeadSums orders them, and the ranges
/// of a group of keys that is not full.
struct StatisticsRecord {
  std::vector<double> doubles;
  std::vector<float> floats;
  Index in_group = 0;       ///< keys of that group
  std::vector<float> low;   ///< [head_dim]
  std::vector<float> high;  ///< [head_dim]

  bool empty() const { return doubles.empty(); }
};

/// What the keys and values of one KV head are coded with; parts that there are not are empty.
struct HeadRecord {
  std::vector<float> mean;        ///< of keys before their rotary embedding, [head_dim]
  std::vector<float> value_mean;  ///< rotated as values are, [head_dim]

  // A subspace basis.
  RoundedMatrix matrix;             ///< A^-T, [coordinate, channel]
  std::vector<float> metric;        ///< [channel]
  double weight = 1;                ///< what the metric was divided by
  std::vector<double> variance;     ///< [coordinate]; while layers may still share bits
  std::vector<WidthRecord> widths;  ///< of the coordinates from the first on
  std::int32_t value_bits = 0;      ///< of values in pages in the basis

  // Orthogonal rounding.
  std::vector<std::int32_t> order;  ///< channels as they are rounded
  std::vector<float> feedback;      ///< F below its diagonal, row by row
  std::int32_t block = 1;           ///< channels rounded together

  StatisticsRecord statistics;

  /// Whether anything is learnt.
  bool empty() const { return mean.empty() && value_mean.empty() && matrix.empty() && order.empty(); }
};

/// The coding of a layer. Where heads share the bits of a page, `shared` says so.
struct CodingRecord {
  bool learnt = false;
  std::size_t code_bytes = 0;  ///< of the codes of a page
  bool shared = false;
  std::int32_t plain_key_bits = 0;  ///< of pages that are not in the basis, where shared
  std::int32_t plain_value_bits = 0;
  double value_gain = 0;              ///< by how much values err less than in plain pages, a token
  std::vector<double> value_weights;  ///< [kv_heads], where attention was weighed
  double output_square = 0;
  std::vector<HeadRecord> heads;

  bool knows_anything() const {
    return std::any_of(heads.begin(), heads.end(), [](const HeadRecord &head) { return !head.empty(); });
  }
};

}  // namespace squat
