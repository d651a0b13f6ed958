#pragma once

// The inverse of a matrix, in its place.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <utility>

#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Inverts a regular matrix, row-major [size, size], by Gauss-Jordan elimination with row pivots
/// (Golub and Van Loan, Matrix Computations, sections 3.2 and 3.4): size^3 multiplications and
/// additions. pivots: memory for [size]. It allocates nothing.
template <class Scalar>
void invert(Scalar *matrix, Index size, Index *pivots) {
  const auto row = [&](Index i) { return matrix + i * size; };
  for (Index k = 0; k < size; ++k) {
    Index pivot = k;
    for (Index i = k + 1; i < size; ++i) {
      if (std::abs(row(i)[k]) > std::abs(row(pivot)[k])) pivot = i;
    }
    pivots[k] = pivot;
    if (pivot != k) std::swap_ranges(row(k), row(k) + size, row(pivot));
    Scalar *of_pivot = row(k);
    const Scalar inverse = 1 / of_pivot[k];
    of_pivot[k] = 1;  // the column that leaves makes room for one of the inverse
    for (Index j = 0; j < size; ++j) of_pivot[j] *= inverse;
    for (Index i = 0; i < size; ++i) {
      if (i == k) continue;
      Scalar *to = row(i);
      const Scalar factor = std::exchange(to[k], Scalar{0});
      for (Index j = 0; j < size; ++j) to[j] -= factor * of_pivot[j];
    }
  }
  // Rows that were swapped are columns of the inverse.
  for (Index k = size - 1; k >= 0; --k) {
    if (pivots[k] == k) continue;
    for (Index i = 0; i < size; ++i) std::swap(row(i)[k], row(i)[pivots[k]]);
  }
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
