#pragma once

// Matrix products with a model's weights on the GPU.

#include <cublas_v2.h>

#include <memory>
#include <vector>

#include "cuda/device_array.hpp"
#include "cuda/kernels.hpp"
#include "gguf.hpp"

namespace engine::cuda {

/// cuBLAS, whose calls go into the default stream.
class Blas {
 public:
  Blas();

  cublasHandle_t handle() const { return handle_.get(); }

 private:
  struct Destroy {
    void operator()(cublasContext *handle) const { cublasDestroy(handle); }
  };
  std::unique_ptr<cublasContext, Destroy> handle_;
};

/// A weight matrix [outputs, inputs] as float16, see engine::Linear; several of the file may stand one
/// below the other, so that one product serves all.
class Linear {
 public:
  Linear() = default;
  Linear(const std::vector<const Tensor *> &tensors, int inputs);

  int outputs() const { return outputs_; }
  const __half *weights() const { return weights_.data(); }

  /// y = x W^T for x [rows, inputs], y [rows, outputs].
  void apply(const Blas &blas, const SplitRows &x, int rows, float *y) const {
    multiply(blas, x.high.data(), rows, 0, y);
    multiply(blas, x.low.data(), rows, 1, y);
  }

  /// y += x W^T.
  void add(const Blas &blas, const SplitRows &x, int rows, float *y) const {
    multiply(blas, x.high.data(), rows, 1, y);
    multiply(blas, x.low.data(), rows, 1, y);
  }

 private:
  /// y = x W^T + beta y
  void multiply(const Blas &blas, const __half *x, int rows, float beta, float *y) const;

  int outputs_ = 0, inputs_ = 0;
  DeviceArray<__half> weights_;
};

}  // namespace engine::cuda
