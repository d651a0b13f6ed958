#pragma once

// What the keys of one KV head are coded with, as the CPU's kernels take it.

#include <Eigen/Core>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/mean_modes.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/cpu/kernels/byte_matrix.hpp"
#include "squat/cpu/kernels/integer_matrix.hpp"
#include "squat/cpu/page_layout.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// A tile frame and what the CPU's kernels make of it, for all heads.
struct TileTables {
  /// Tiles of `rows` tokens.
  template <class Real = double>
  TileTables(const RotaryTable &table, Index rows)
      : frame(table, rows), modes(frame), mode_rows(transposed<Real>(modes.rows(frame))) {}

  std::size_t bytes() const { return frame.bytes() + modes.bytes() + mode_rows.bytes(); }

  TileFrame frame;
  MeanModes modes;
  IntegerMatrix mode_rows;  ///< [rows of a tile, modes]
};

/// What a query of one KV head is multiplied by once a tile: A^-T, the subspace
/// basis, and the projection onto the modes of the head's mean key.
class QueryTransform {
 public:
  QueryTransform() = default;

  /// tiles: that the quantizer's keys are coded in, or null.
  template <class Real = double>
  QueryTransform(const KeyQuantizer &quantizer, const TileTables *tiles) {
    if (const SubspaceBasis *basis = quantizer.basis()) {
      const Eigen::MatrixXd matrix = basis->queries_to_basis<Real>();
      if (quantizer.bits() <= most_bits_of_bytes) {
        // A query's channels range as the metric's diagonal says.
        std::vector<double> widths;
        for (const float weight : basis->metric)
          widths.push_back(std::sqrt(static_cast<double>(weight)));
        bytes_ = ByteMatrix(matrix, widths);
      } else {
        words_ = IntegerMatrix(matrix);
      }
    }
    if (const float *mean = quantizer.mean()) {
      const auto d = static_cast<std::size_t>(quantizer.head_dim());
      modes_ = IntegerMatrix(tiles->modes.projection({mean, d}));
    }
  }

  /// A^-T in bytes, or in words, where more bits of the keys want more of the
  /// queries. Empty: there is no basis, or the other holds it.
  const ByteMatrix &byte_basis() const { return bytes_; }
  const IntegerMatrix &word_basis() const { return words_; }

  /// Onto the modes, [modes, head_dim]. Empty: there is no mean.
  const IntegerMatrix &modes() const { return modes_; }

  std::size_t bytes() const { return bytes_.bytes() + words_.bytes() + modes_.bytes(); }

 private:
  static constexpr int most_bits_of_bytes = 2;  // at 3, bytes add 8 % to the KL

  ByteMatrix bytes_;
  IntegerMatrix words_;
  IntegerMatrix modes_;
};

/// The codes of one head in a page.
struct HeadCodes {
  KeySpace space;
  const BitAllocation *allocation;  ///< of the keys
  std::byte *keys;
  std::byte *values;
  int value_bits;

  template <class Scalar>
  Scalar *key_codes() const {
    return reinterpret_cast<Scalar *>(keys);
  }
  template <class Scalar>
  Scalar *value_codes() const {
    return reinterpret_cast<Scalar *>(values);
  }
};

/// What the keys and values of one head are coded with.
struct HeadCoding {
  const TileTables *tiles = nullptr;    ///< null: keys are coded in the frame they come in
  const RotaryTable *rotary = nullptr;  ///< null: a page's base is 0
  const KeyQuantizer *quantizer = nullptr;
  const QueryTransform *transform = nullptr;
  CodePlace place{};           ///< of the codes in a page of KeySpace::channels
  CodePlace place_in_basis{};  ///< of KeySpace::basis

  HeadCodes codes(std::byte *page, KeySpace space) const {
    const CodePlace &where = space == KeySpace::basis ? place_in_basis : place;
    return {space, &quantizer->allocation(space), page + where.keys, page + where.values,
            where.value_bits};
  }
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
