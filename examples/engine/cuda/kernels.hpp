#pragma once

// What a Llama layer needs beside matrix products and attention. Rows are contiguous; every call is put
// into the default stream.

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "cuda/device_array.hpp"

namespace engine::cuda {

/// Rows of floats as sums of two float16: high + low is within 2^-22 of the float. Products with float16
/// weights on the matrix units are then as good as the CPU engine's, whose rows are floats.
struct SplitRows {
  DeviceArray<__half> high, low;

  void reserve(std::size_t count) {
    high.reserve(count);
    low.reserve(count);
  }
};

/// x[i] = row tokens[i] of the embedding, each `width` elements.
void embed(const __half *embedding, const int *tokens, int rows, int width, float *x);

/// y[i] = x[from[i]] / sqrt(mean of squares + epsilon) * weight; from null: i.
void normalize(const float *x, const int *from, const float *weight, float epsilon, int rows, int width,
               const SplitRows &y);

/// The rotary embedding of `heads` heads at the beginning of rows that are `stride` apart: turns the
/// pair (2i, 2i + 1) by positions[row] * inverse_frequencies[i].
struct Rotation {
  const int *positions;
  const float *inverse_frequencies;
  int pairs;
  int heads;
  int head_dim;
};
void rotate(float *x, int stride, int rows, const Rotation &rotation);

/// y = x.
void split(const float *x, std::size_t count, const SplitRows &y);

/// y[i] = silu(gate) * up of the row [gate, up], `width` elements each.
void gate(const float *gate_and_up, int rows, int width, const SplitRows &y);

}  // namespace engine::cuda
