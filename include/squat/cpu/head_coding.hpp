#pragma once

// What the keys of one KV head are coded with, as the CPU's kernels take it.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include "squat/coding/inverse.hpp"
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
  TileTables(const RotaryTable &table, Index rows, Index head_dim) : frame(table, rows) {
    const MeanModes modes(frame);
    mode_products = IntegerMatrix(modes.of_products(head_dim));
    mode_rows = IntegerMatrix(transposed<Real>(modes.rows(frame)));
  }

  std::size_t bytes() const { return frame.bytes() + mode_products.bytes() + mode_rows.bytes(); }

  TileFrame frame;
  IntegerMatrix mode_products;  ///< [modes, head_dim], of multiply_by_mean()
  IntegerMatrix mode_rows;      ///< [rows of a tile, modes]
};

/// The subspace basis of one KV head as A^-T, by which its queries go once a tile. A^-T is rounded, and
/// the only matrix that is kept: A is defined as the inverse transpose of what was kept, so that scores
/// err by the rounding of codes and of queries alone.
class QueryTransform {
 public:
  QueryTransform() = default;

  /// Of a quantizer whose basis was rounded, if it has one.
  explicit QueryTransform(const KeyQuantizer &quantizer) {
    const SubspaceBasis *basis = quantizer.basis();
    if (basis == nullptr) return;
    if (basis->rounded.bytes) {
      bytes_ = ByteMatrix(basis->rounded);
    } else {
      words_ = IntegerMatrix(basis->rounded);
    }
  }

  /// What it was made of; empty without a basis.
  RoundedMatrix rounded() const {
    if (bytes_.outputs() > 0) return bytes_.rounded();
    if (words_.outputs() > 0) return words_.rounded();
    return {};
  }

  /// A^-T in bytes, or in words, where more bits of the keys want more of the
  /// queries. Empty: there is no basis, or the other holds it.
  const ByteMatrix &byte_basis() const { return bytes_; }
  const IntegerMatrix &word_basis() const { return words_; }

  bool has_basis() const { return bytes_.outputs() + words_.outputs() > 0; }

  /// A^-1, [channel, coordinate], by which keys go back, if there is a basis.
  void write_from_basis(float *to) const {
    if (bytes_.outputs() > 0) {
      bytes_.write_transposed(to);
    } else if (words_.outputs() > 0) {
      words_.write_transposed(to);
    }
  }

  /// A, [coordinate, channel], by which keys go there, if there is a basis. pivots: memory for
  /// [head_dim].
  void write_to_basis(float *to, Index *pivots) const {
    if (!has_basis()) return;
    write_from_basis(to);
    invert(to, std::max(bytes_.outputs(), words_.outputs()), pivots);
  }

  std::size_t bytes() const { return bytes_.bytes() + words_.bytes(); }

 private:
  ByteMatrix bytes_;
  IntegerMatrix words_;
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
  const float *value_mean = nullptr;  ///< [head_dim], rotated as values are; null: none was learnt
  HeadPlace place{};                  ///< of the codes in a page of KeySpace::channels
  HeadPlace place_in_basis{};         ///< of KeySpace::basis

  /// Modes of the mean key, 0 without one.
  Index modes() const { return quantizer->mean() ? tiles->mode_products.outputs() : 0; }

  HeadCodes codes(std::byte *page, KeySpace space) const {
    const HeadPlace &where = space == KeySpace::basis ? place_in_basis : place;
    return {space, &quantizer->allocation(space), page + where.keys, page + where.values,
            where.value_bits};
  }
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
