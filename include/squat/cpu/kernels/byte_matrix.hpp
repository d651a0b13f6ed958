#pragma once

// A matrix in bytes times rows of floats, at twice the rate of IntegerMatrix and
// half its size: the transform of queries into the subspace basis where keys
// have few bits.
//
//   result[r][o] = sum_i x[r][i] m[o][i] ~ scale[o] * sum_i (x[r][i] / w[i]) (code[o][i] - 127.5)
//
// Entries are 8-bit codes, a scale an output, and rows are rounded as weights of
// codes are (weighted_codes.hpp). w evens the inputs out before either is
// rounded, so that no large channel takes the others' digits. Results err by
// some 2 % of their RMS, which is little beside the error of 2-bit keys, and
// shows beside that of 3-bit ones.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "squat/coding/codes.hpp"
#include "squat/coding/rounded_matrix.hpp"
#include "squat/cpu/buffer.hpp"
#include "squat/cpu/kernels/dot_codes.hpp"
#include "squat/cpu/kernels/float_vector.hpp"
#include "squat/cpu/kernels/round_weights.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"
#include "squat/cpu/workspace.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

class ByteMatrix {
 public:
  ByteMatrix() = default;

  /// matrix: [outputs, inputs], multiples of 16; widths: how far each input
  /// ranges, [inputs].
  ByteMatrix(const Eigen::MatrixXd &matrix, const std::vector<double> &widths)
      : ByteMatrix(round_to_bytes(matrix, widths)) {}

  /// matrix: of bytes, extents likewise.
  explicit ByteMatrix(const RoundedMatrix &matrix)
      : outputs_(matrix.outputs),
        inputs_(matrix.inputs),
        codes_(code_bytes(8, outputs_, inputs_)),
        scales_(static_cast<std::size_t>(outputs_)),
        inverse_widths_(static_cast<std::size_t>(inputs_)) {
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(outputs_ * inputs_));
    const std::int16_t *code = matrix.codes.data();
    for (Index output = 0; output < outputs_; ++output) {
      for (Index input = 0; input < inputs_; ++input) {
        codes[static_cast<std::size_t>(input * outputs_ + output)] = static_cast<std::uint8_t>(*code++);
      }
    }
    pack_codes(8, codes.data(), outputs_, outputs_, inputs_, codes_.data());
    std::copy(matrix.scales.begin(), matrix.scales.end(), scales_.data());
    std::copy(matrix.input_scales.begin(), matrix.input_scales.end(), inverse_widths_.data());
  }

  Index outputs() const { return outputs_; }
  std::size_t bytes() const { return codes_.bytes() + scales_.bytes() + inverse_widths_.bytes(); }

  /// What it was made of.
  RoundedMatrix rounded() const {
    RoundedMatrix matrix{outputs_, inputs_, true, {}, {}, {}};
    matrix.scales.assign(scales_.data(), scales_.data() + outputs_);
    matrix.input_scales.assign(inverse_widths_.data(), inverse_widths_.data() + inputs_);
    matrix.codes.reserve(static_cast<std::size_t>(outputs_ * inputs_));
    for (Index output = 0; output < outputs_; ++output) {
      for (Index input = 0; input < inputs_; ++input)
        matrix.codes.push_back(block(output / lanes * lanes, input)[4 * (output % lanes)]);
    }
    return matrix;
  }

  /// The transpose of the matrix that multiply() stands for, [inputs, outputs].
  void write_transposed(float *to) const {
    for (Index lane = 0; lane < outputs_; lane += lanes) {
      for (Index input = 0; input < inputs_; ++input) {
        const std::uint8_t *of_lanes = block(lane, input);
        const float inverse_width = inverse_widths_.data()[input];
        for (Index i = 0; i < lanes; ++i) {
          to[input * outputs_ + lane + i] = (static_cast<float>(of_lanes[4 * i]) - middle_code(8)) *
                                            scales_.data()[lane + i] * inverse_width;
        }
      }
    }
  }

  static std::size_t scratch_bytes(Index rows, Index inputs) {
    return Scratch::bytes<float>(rows * inputs) + Scratch::bytes<std::int8_t>(rows * inputs) +
           5 * Scratch::bytes<float>(rows);
  }

  /// result[r][0 ... outputs) of `rows` rows.
  template <class Scalar>
  void multiply(RowView<const Scalar> x, Index rows, RowView<Scalar> result, Scratch scratch) const {
    // Locals: what is stored could be members, as far as the compiler knows.
    const Index inputs = inputs_, outputs = outputs_;
    const float *scales = scales_.data(), *inverse_widths = inverse_widths_.data();
    const RowView<float> even{scratch.take<float>(rows * inputs), inputs};
    const RowView<std::int8_t> rounded{scratch.take<std::int8_t>(rows * inputs), inputs};
    auto *multipliers = scratch.take<float>(rows), *rests = scratch.take<float>(rows);
    auto *sums = scratch.take<float>(rows), *offsets = scratch.take<float>(rows);
    auto *largest = scratch.take<float>(rows);
    for_row_blocks(rows, [&]<int RowCount>(Index row) {
      FloatVector row_sums[4], most[4];
      SQUAT_UNROLL(16)
      for (int r = 0; r < 4; ++r) row_sums[r] = most[r] = broadcast(0);
      for (Index i = 0; i < inputs; i += float_lanes) {
        const FloatVector inverse_width = load_floats(inverse_widths + i);
        SQUAT_UNROLL(16)
        for (int r = 0; r < RowCount; ++r) {
          const FloatVector input = load_floats(x[row + r] + i) * inverse_width;
          store_floats(even[row + r] + i, input);
          row_sums[r] = row_sums[r] + input;
          most[r] = greater_of(most[r], magnitude(input));
        }
      }
      float totals[4], greatest[4];
      sum_each(row_sums, totals);
      largest_of_each(most, greatest);
      std::copy_n(totals, RowCount, sums + row);
      std::copy_n(greatest, RowCount, largest + row);
    });
    for (Index row = 0; row < rows; ++row) std::fill_n(result[row], outputs, 0.0f);
    round_weights(even, rows, inputs, most_weight(8), rounded, largest, multipliers, rests);
    // What codes count from, times the sum of the rounded inputs.
    for (Index row = 0; row < rows; ++row) offsets[row] = middle_code(8) * (rests[row] - sums[row]);
    DotPlanes<std::int8_t> planes;
    planes.add<8>();
    accumulate_codes(planes, {8, codes_.data(), outputs, inputs}, 0, outputs, rows,
                     RowView<const std::int8_t>{rounded.data, rounded.stride}, {multipliers, offsets},
                     {result, rows});
    for (Index row = 0; row < rows; ++row) {
      float *to = result[row];
      for (Index o = 0; o < outputs; o += float_lanes) {
        store_floats(to + o, load_floats(to + o) * load_floats(scales + o));
      }
    }
  }

 private:
  /// The code of an input and the lane `lane`, a multiple of 16; that of each lane behind it is four
  /// bytes further.
  const std::uint8_t *block(Index lane, Index input) const {
    return codes_.data() + plane_bytes(8, lane, inputs_) + input / 4 * block_bytes + input % 4;
  }

  Index outputs_ = 0;
  Index inputs_ = 0;
  Buffer<std::uint8_t> codes_;
  Buffer<float> scales_;          // [outputs]
  Buffer<float> inverse_widths_;  // [inputs]
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
