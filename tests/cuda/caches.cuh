#pragma once

// Caches on the device, beside the kernels that kernels_of_*.cu have for them.

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "device_array.hpp"
#include "page_kernels.cuh"
#include "reference/reference_attention.hpp"
#include "squat/squat.cuh"

namespace squat::test {

/// Kernels for one head_dim and group.
template <int HeadDim, int Group>
using DeviceBackend = CudaOf<cuda::OneOf<HeadDim>, cuda::OneOf<Group>>;

/// T: of exact rows.
template <int HeadDim, int Group, int KeyBits, int ValueBits, class T = half>
using DeviceCache = KVCache<T, KeyBits, ValueBits, DeviceBackend<HeadDim, Group>>;

/// A cache and what it is made of, for typed tests.
template <int HeadDim, int Group, int KeyBits, int ValueBits, class Exact = half>
struct CacheWidths {
  using T = Exact;
  using Cache = DeviceCache<HeadDim, Group, KeyBits, ValueBits, T>;
  static Options options(int query_heads, int kv_heads) {
    return {.layers = 1,
            .query_heads = query_heads,
            .kv_heads = kv_heads,
            .head_dim = HeadDim,
            .residual = 16,
            .page_tokens = Group,
            .statistics_tokens = 60};
  }
};

/// A tensor in device memory.
template <class S = float>
class DeviceTensorCopy {
 public:
  explicit DeviceTensorCopy(const Tensor<S> &host) : host_(host), device_(host.elements) {}

  TensorView<S> view() { return {device_.data(), host_.tokens, host_.heads, host_.head_dim}; }
  TensorView<S> view(Index first, Index count) { return view().slice(first, count); }
  void write(const Tensor<S> &host) { device_.write(host.elements); }
  Tensor<S> read() {
    Tensor<S> copy = host_;
    copy.elements = device_.read();
    return copy;
  }

 private:
  Tensor<S> host_;
  DeviceArray<S> device_;
};

/// The element of type T nearest to x.
template <class T>
float nearest(float x) {
  return static_cast<float>(T(x));
}

/// `round` makes elements such that a cache, whose exact rows are float16, keeps them as they are.
inline Inputs<> rounded(Inputs<> inputs, float (*round)(float) = nearest<half>) {
  for (auto *tensor : {&inputs.q, &inputs.k, &inputs.v}) {
    for (float &x : tensor->elements) x = round(x);
  }
  return inputs;
}

/// The queries, keys and values of one layer of a sequence, on the host and on the device.
struct DeviceInputs {
  DeviceInputs(const Options &options, Index tokens, unsigned seed,
               float (*round)(float) = nearest<half>)
      : DeviceInputs(rounded({options, tokens, seed}, round)) {}
  explicit DeviceInputs(Inputs<> inputs)
      : host(std::move(inputs)), q(host.q), k(host.k), v(host.v), out(host.out) {}

  Inputs<> host;
  DeviceTensorCopy<> q, k, v, out;
};

/// What a cache on the device holds of one sequence and layer, on the host.
template <class Cache>
Contents device_contents(Cache &cache, SequenceId sequence, int layer = 0) {
  const Options &options = cache.options();
  const Tensor<float> empty(cache.length(sequence, layer), options.kv_heads, options.head_dim);
  DeviceTensorCopy<> k(empty), v(empty);
  cache.dequantize(sequence, layer, k.view(), v.view());
  return {k.read(), v.read()};
}

/// How far attention on the device may be from attention over what it holds: queries, probabilities and
/// bases are float16 there.
constexpr double device_tolerance = 3e-3;

class OnDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_device()) GTEST_SKIP() << "no CUDA device";
  }
};

}  // namespace squat::test
