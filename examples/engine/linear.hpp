#pragma once

// Matrix products with a model's weights.

#include <Eigen/Core>
#include <vector>

#include "gguf.hpp"

namespace engine {

using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// A weight matrix [outputs, inputs], kept as float16: half the memory traffic of float, and finer than
/// the quantised weights it is read from.
class Linear {
 public:
  Linear() = default;
  Linear(const Tensor &tensor, Eigen::Index outputs, Eigen::Index inputs);

  Eigen::Index outputs() const { return outputs_; }

  /// y = x W^T for x [rows, inputs], y [rows, outputs], on all threads of OpenMP.
  void apply(const RowMatrix &x, RowMatrix &y) const;

  /// Row `output` of W as floats.
  void copy_row(Eigen::Index output, float *to) const;

 private:
  Eigen::Index outputs_ = 0, inputs_ = 0;
  // [panels, inputs, panel_outputs]: the weights that a step of the product loads stand together.
  // Outputs that fill up the last panel have weights of zero.
  std::vector<Eigen::half> panels_;
};

}  // namespace engine
