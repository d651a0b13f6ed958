#include "cuda/linear.hpp"

#include <stdexcept>
#include <string>

#include "dequantize.hpp"

namespace engine::cuda {
namespace {

void check(cublasStatus_t status, const char *what) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw std::runtime_error(std::string(what) + ": " + cublasGetStatusString(status));
  }
}

}  // namespace

Blas::Blas() {
  cublasHandle_t handle = nullptr;
  check(cublasCreate(&handle), "cublasCreate");
  handle_.reset(handle);
}

Linear::Linear(const std::vector<const Tensor *> &tensors, int inputs) : inputs_(inputs) {
  std::vector<__half> weights;
  for (const Tensor *tensor : tensors) {
    for (float weight : dequantize(*tensor)) weights.push_back(__float2half_rn(weight));
  }
  outputs_ = static_cast<int>(weights.size() / static_cast<std::size_t>(inputs));
  weights_ = DeviceArray<__half>(std::span<const __half>(weights));
}

void Linear::multiply(const Blas &blas, const __half *x, int rows, float beta, float *y) const {
  // cuBLAS counts columns first: y^T = W x^T, and W as it lies there is its own transpose.
  constexpr float alpha = 1;
  check(cublasGemmEx(blas.handle(), CUBLAS_OP_T, CUBLAS_OP_N, outputs_, rows, inputs_, &alpha,
                     weights_.data(), CUDA_R_16F, inputs_, x, CUDA_R_16F, inputs_, &beta, y, CUDA_R_32F,
                     outputs_, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "cublasGemmEx");
}

}  // namespace engine::cuda
