#pragma once

// What layers need beside matrix products and attention. Rows are contiguous; every call is put
// into the default stream.

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "config.hpp"
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

/// x[i] = scale * row tokens[i] of the embedding, each `width` elements.
void embed(const __half *embedding, const int *tokens, float scale, int rows, int width, float *x);

/// y[i] = x[from[i]] / sqrt(mean of squares + epsilon) * weight; from null: i.
void normalize(const float *x, const int *from, const float *weight, float epsilon, int rows, int width,
               const SplitRows &y);

/// y[i] += x[i] / sqrt(mean of squares + epsilon) * weight.
void add_normalized(const float *x, const float *weight, float epsilon, int rows, int width, float *y);

/// What heads go through between their product and attention: biases, norms of every head of queries
/// and keys, and the rotary embedding of these, which turns a pair of channels by positions[row] *
/// inverse_frequencies[pair]. Null: an architecture without.
struct Heads {
  int query_heads, kv_heads, head_dim;
  const float *bias;                   // [query_heads + 2 kv_heads, head_dim]
  const float *query_norm, *key_norm;  // [head_dim]
  float epsilon;                       // of norms
  const int *positions;                // [rows]
  const float *inverse_frequencies;    // [pairs]
  int pairs;
  squat::RotaryPairs pairing;
};

/// Rows [query_heads + 2 kv_heads, head_dim]: queries, keys and values side by side.
void finish_heads(float *qkv, int rows, const Heads &heads);

/// y = x.
void split(const float *x, std::size_t count, const SplitRows &y);

/// y[i] = activation(gate) * up of the row [gate, up], `width` elements each.
void gate(const float *gate_and_up, Activation activation, int rows, int width, const SplitRows &y);

/// x = cap tanh(x / cap).
void soft_cap(float *x, std::size_t count, float cap);

}  // namespace engine::cuda
