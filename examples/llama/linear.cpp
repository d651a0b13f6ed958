#include "linear.hpp"

#include <algorithm>

#include "dequantize.hpp"
#include "squat/cpu/float_vector.hpp"
#include "squat/cpu/vector.hpp"

namespace llama {
namespace {

using Weights = Eigen::Matrix<Eigen::half, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

using squat::lanes;
constexpr Eigen::Index few_rows = 32;  // up to here the weights' memory is the limit, not arithmetic
constexpr Eigen::Index run_outputs = 2048, run_rows = 128;
// Multiply-adds from which threads pay; a smaller product ends before they have all woken.
[[maybe_unused]] constexpr Eigen::Index worth_threads = 1 << 16;

/// y[first .. first + Rows)[output] for one weight row: each weight is converted once for all Rows.
template <int Rows>
void dot_rows(const Eigen::half* weights, const RowMatrix& x, Eigen::Index first, RowMatrix& y,
              Eigen::Index output) {
  using squat::cpu::FloatVector, squat::cpu::load_floats;
  const Eigen::Index inputs = x.cols(),
                     whole = inputs / squat::cpu::float_lanes * squat::cpu::float_lanes;
  FloatVector sums[Rows];
  std::fill_n(sums, Rows, squat::cpu::broadcast(0));
  for (Eigen::Index i = 0; i < whole; i += squat::cpu::float_lanes) {
    const FloatVector weight = load_floats(weights + i);
    for (int r = 0; r < Rows; ++r) {
      sums[r] =
          squat::cpu::multiply_add(weight, load_floats(x.data() + (first + r) * inputs + i), sums[r]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    float sum = squat::cpu::sum_lanes(sums[r]);
    for (Eigen::Index i = whole; i < inputs; ++i)
      sum += static_cast<float>(weights[i]) * x(first + r, i);
    y(first + r, output) = sum;
  }
}

void apply_few(const Weights& weights, const RowMatrix& x, RowMatrix& y) {
#pragma omp parallel for schedule(static) if (weights.size() * x.rows() >= worth_threads)
  for (Eigen::Index output = 0; output < weights.rows(); ++output) {
    const Eigen::half* row = weights.data() + output * weights.cols();
    Eigen::Index first = 0;
    for (; first + 8 <= x.rows(); first += 8) dot_rows<8>(row, x, first, y, output);
    for (; first + 2 <= x.rows(); first += 2) dot_rows<2>(row, x, first, y, output);
    if (first < x.rows()) dot_rows<1>(row, x, first, y, output);
  }
}

void widen(const Eigen::half* from, Eigen::Index count, float* to) {
  const Eigen::Index whole = count / lanes * lanes;
  squat::cpu::convert_row(from, whole, to);
  std::transform(from + whole, from + count, to + whole,
                 [](Eigen::half x) { return static_cast<float>(x); });
}

/// Runs of outputs become float once; every thread multiplies its own rows with them, so that Eigen
/// packs little twice.
void apply_many(const Weights& weights, const RowMatrix& x, RowMatrix& y) {
  RowMatrix block(std::min(run_outputs, weights.rows()), weights.cols());
  for (Eigen::Index first = 0; first < weights.rows(); first += run_outputs) {
    const Eigen::Index count = std::min(run_outputs, weights.rows() - first);
#pragma omp parallel
    {
#pragma omp for schedule(static)
      for (Eigen::Index i = 0; i < count; ++i) {
        widen(weights.row(first + i).data(), weights.cols(), block.row(i).data());
      }
#pragma omp for schedule(dynamic)
      for (Eigen::Index row = 0; row < x.rows(); row += run_rows) {
        const Eigen::Index rows = std::min(run_rows, x.rows() - row);
        y.block(row, first, rows, count).noalias() =
            x.middleRows(row, rows) * block.topRows(count).transpose();
      }
    }
  }
}

}  // namespace

Linear::Linear(const Tensor& tensor, Eigen::Index outputs, Eigen::Index inputs)
    : weights_(outputs, inputs) {
  const std::vector<float> elements = dequantize(tensor);
  std::transform(elements.begin(), elements.end(), weights_.data(),
                 [](float x) { return Eigen::half(x); });
}

void Linear::apply(const RowMatrix& x, RowMatrix& y) const {
  y.resize(x.rows(), weights_.rows());
  if (x.rows() <= few_rows) {
    apply_few(weights_, x, y);
  } else {
    apply_many(weights_, x, y);
  }
}

void Linear::copy_row(Eigen::Index output, float* to) const {
  Eigen::Map<Eigen::RowVectorXf>(to, weights_.cols()) = weights_.row(output).cast<float>();
}

}  // namespace llama
