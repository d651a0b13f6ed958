#pragma once

// A matrix in 16-bit integers times rows of floats: the transform of queries
// into a head's subspace basis, and the scores of the turned mean key. Twice
// the rate of floats, and an error of some 5e-4 of a result, far below that of
// any coding.
//
//   result[r][o] = step[r] * scale[o] * sum_i row[r][i] * entry[o][i]
//
// Entries of an output are scaled until their absolute sum is below 2^16 and
// rows hold 15 bits and a sign, so that every partial sum is below 2^31.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "squat/coding/rounded_matrix.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/cpu/buffer.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"

#if defined(SQUAT_CPU_AVX512)
#include "squat/cpu/kernels/integer_matrix_avx512.hpp"
#elif defined(SQUAT_CPU_AVX2)
#include "squat/cpu/kernels/integer_matrix_avx2.hpp"
#elif defined(SQUAT_CPU_NEON)
#include "squat/cpu/kernels/integer_matrix_neon.hpp"
#else
#include "squat/cpu/kernels/integer_matrix_portable.hpp"
#endif

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Rows of 16-bit integers, as IntegerMatrix takes them, and what a step of each
/// is worth. Their stride is even.
struct RoundedRows {
  RowView<std::int16_t> rows{};
  float *steps = nullptr;
};

/// Entries come as blocks of 64 bytes: 16 outputs times two inputs; the blocks
/// of all inputs of 16 outputs follow each other. Outputs are filled up to a
/// multiple of 16, inputs to an even number, with zeros.
class IntegerMatrix {
 public:
  IntegerMatrix() = default;

  /// matrix: [outputs, inputs].
  explicit IntegerMatrix(const Eigen::MatrixXd &matrix) : IntegerMatrix(round_to_words(matrix)) {}

  /// matrix: of words.
  explicit IntegerMatrix(const RoundedMatrix &matrix)
      : outputs_((matrix.outputs + lanes - 1) / lanes * lanes),
        inputs_((matrix.inputs + 1) / 2 * 2),
        entries_(static_cast<std::size_t>(outputs_ * inputs_)),
        scales_(static_cast<std::size_t>(outputs_)) {
    std::fill_n(entries_.data(), entries_.size(), std::int16_t{0});
    std::fill_n(scales_.data(), scales_.size(), 0.0f);
    std::copy(matrix.scales.begin(), matrix.scales.end(), scales_.data());
    const std::int16_t *code = matrix.codes.data();
    for (Index output = 0; output < matrix.outputs; ++output) {
      for (Index input = 0; input < matrix.inputs; ++input)
        entries_.data()[place(output, input)] = *code++;
    }
  }

  Index outputs() const { return outputs_; }
  std::size_t bytes() const { return entries_.bytes() + scales_.bytes(); }

  /// What it was made of, where neither extent was filled up.
  RoundedMatrix rounded() const {
    RoundedMatrix matrix{outputs_, inputs_, false, {}, {}, {}};
    matrix.scales.assign(scales_.data(), scales_.data() + outputs_);
    matrix.codes.reserve(entries_.size());
    for (Index output = 0; output < outputs_; ++output) {
      for (Index input = 0; input < inputs_; ++input)
        matrix.codes.push_back(entries_.data()[place(output, input)]);
    }
    return matrix;
  }

  /// The transpose of the matrix that multiply() stands for, [inputs, outputs].
  void write_transposed(float *to) const {
    for (Index output = 0; output < outputs_; ++output) {
      for (Index input = 0; input < inputs_; ++input) {
        to[input * outputs_ + output] =
            scales_.data()[output] * static_cast<float>(entries_.data()[place(output, input)]);
      }
    }
  }

  /// result[r][o - first] of `rows` rows and the outputs [first, first + count),
  /// multiples of 16.
  template <class Scalar>
  void multiply(const RoundedRows &x, Index rows, Index first, Index count,
                RowView<Scalar> result) const {
    for_row_blocks<most_matrix_rows>(rows, [&]<int RowCount>(Index row) {
      for_lane_blocks<output_blocks<RowCount>>(count, [&]<int Blocks>(Index output) {
        multiply_pairs<RowCount, Blocks>(
            entries_.data() + (first + output) * inputs_, inputs_, {x.rows[row], x.rows.stride},
            x.steps + row, scales_.data() + first + output, {result[row] + output, result.stride});
      });
    });
  }

 private:
  /// Where an entry stands.
  Index place(Index output, Index input) const {
    return output / lanes * lanes * inputs_ + input / 2 * lanes * 2 + output % lanes * 2 + input % 2;
  }

  Index outputs_ = 0;
  Index inputs_ = 0;
  Buffer<std::int16_t> entries_;
  Buffer<float> scales_;
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
