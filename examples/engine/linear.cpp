#include "linear.hpp"

#include <algorithm>
#include <array>
#include <span>

#include "dequantize.hpp"
#include "parallel_for.hpp"
#include "squat/cpu/kernels/float_vector.hpp"

namespace engine {
namespace {

using squat::cpu::FloatVector, squat::cpu::float_lanes;

// A tile of the product is a panel of outputs by a few rows. Its sums, 3 vectors by 4 rows, fill 12 of
// the 16 registers that AVX2 has; 3 weights and one x take the others. Each input costs 7 loads for 12
// multiply-adds, and one conversion from float16 serves all rows of the tile.
constexpr int panel_vectors = 3, tile_rows = 4;
constexpr Eigen::Index panel_outputs = panel_vectors * float_lanes;
// The rows that meet one panel after another: they stay in the second-level cache.
constexpr Eigen::Index block_rows = 64;
// Multiply-adds from which threads pay; a smaller product ends before they have all woken.
[[maybe_unused]] constexpr Eigen::Index worth_threads = 1 << 16;

/// y[row, output] = sum over i of x[row, i] panel[i, output] for Rows rows and `outputs` of the panel.
template <int Rows>
void multiply_tile(const Eigen::half *panel, const float *x, Eigen::Index inputs, float *y,
                   Eigen::Index y_stride, Eigen::Index outputs) {
  FloatVector sums[Rows][panel_vectors];
  for (auto &row : sums) {
    for (FloatVector &sum : row) sum = squat::cpu::broadcast(0);
  }
  for (Eigen::Index i = 0; i < inputs; ++i, panel += panel_outputs) {
    FloatVector weights[panel_vectors];
    for (int v = 0; v < panel_vectors; ++v)
      weights[v] = squat::cpu::load_floats(panel + v * float_lanes);
    for (int r = 0; r < Rows; ++r) {
      const FloatVector element = squat::cpu::broadcast(x[r * inputs + i]);
      for (int v = 0; v < panel_vectors; ++v)
        sums[r][v] = squat::cpu::multiply_add(element, weights[v], sums[r][v]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    float whole[panel_outputs];
    for (int v = 0; v < panel_vectors; ++v)
      squat::cpu::store_floats(whole + v * float_lanes, sums[r][v]);
    std::copy_n(whole, outputs, y + r * y_stride);
  }
}

using MultiplyTile = void (*)(const Eigen::half *, const float *, Eigen::Index, float *, Eigen::Index,
                              Eigen::Index);
constexpr std::array<MultiplyTile, tile_rows> tiles = {multiply_tile<1>, multiply_tile<2>,
                                                       multiply_tile<3>, multiply_tile<4>};

/// Outputs [first_output, first_output + outputs) of rows [row, end), in tiles as equal as can be.
void multiply_panel(const Eigen::half *panel, const RowMatrix &x, Eigen::Index row, Eigen::Index end,
                    RowMatrix &y, Eigen::Index first_output, Eigen::Index outputs) {
  for (Eigen::Index left = (end - row + tile_rows - 1) / tile_rows; left > 0; --left) {
    const Eigen::Index rows = (end - row + left - 1) / left;
    tiles[static_cast<std::size_t>(rows - 1)](panel, x.data() + row * x.cols(), x.cols(),
                                              y.data() + row * y.cols() + first_output, y.cols(),
                                              outputs);
    row += rows;
  }
}

}  // namespace

Linear::Linear(const Tensor &tensor, Eigen::Index outputs, Eigen::Index inputs)
    : outputs_(outputs), inputs_(inputs) {
  const Eigen::Index panels = (outputs + panel_outputs - 1) / panel_outputs;
  panels_.resize(static_cast<std::size_t>(panels * inputs * panel_outputs));
  parallel_for(static_cast<int>(panels), [&](int panel) {
    const Eigen::Index first = panel * panel_outputs, count = std::min(panel_outputs, outputs - first);
    RowMatrix rows(count, inputs);
    dequantize(tensor, static_cast<std::size_t>(first * inputs),
               std::span(rows.data(), static_cast<std::size_t>(rows.size())));
    Eigen::half *to = panels_.data() + first * inputs;
    for (Eigen::Index i = 0; i < inputs; ++i, to += panel_outputs) {
      for (Eigen::Index output = 0; output < count; ++output) to[output] = Eigen::half(rows(output, i));
    }
  });
}

void Linear::apply(const RowMatrix &x, RowMatrix &y) const {
  y.resize(x.rows(), outputs_);
  const Eigen::Index panels = (outputs_ + panel_outputs - 1) / panel_outputs;
  const Eigen::Index items = (x.rows() + block_rows - 1) / block_rows * panels;
#pragma omp parallel for schedule(dynamic) if (outputs_ * inputs_ * x.rows() >= worth_threads)
  for (Eigen::Index item = 0; item < items; ++item) {
    const Eigen::Index row = item / panels * block_rows, first = item % panels * panel_outputs;
    multiply_panel(panels_.data() + first * inputs_, x, row, std::min(row + block_rows, x.rows()), y,
                   first, std::min(panel_outputs, outputs_ - first));
  }
}

void Linear::copy_row(Eigen::Index output, float *to) const {
  const Eigen::half *from = panels_.data() + output / panel_outputs * panel_outputs * inputs_;
  for (Eigen::Index i = 0; i < inputs_; ++i)
    to[i] = static_cast<float>(from[i * panel_outputs + output % panel_outputs]);
}

}  // namespace engine
