#pragma once

// Queries, keys and values as an engine hands them over, made on the GPU.
//
// Keys and queries are normal, pairs of channels from `narrow` to 1 times as wide, keys with a mean half
// as large as that, and turned by their rotary embedding. So a subspace coding meets what real heads
// show it: at 2 bits on average a quarter of the channels gets 4, half of them 2, a quarter none.

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "squat/cuda/state/device_buffer.hpp"
#include "squat/squat.hpp"
#include "workload.hpp"

namespace bench {

inline constexpr double rotary_base = 5e5;

inline squat::RotaryTable rotary_table() {
  squat::RotaryTable table;
  for (int i = 0; i < head_dim; i += 2) {
    table.inverse_frequencies.push_back(static_cast<float>(std::pow(rotary_base, -1.0 * i / head_dim)));
  }
  return table;
}

/// 32 random bits of a number (the finaliser of MurmurHash3).
__device__ inline std::uint32_t scramble(std::uint64_t x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdull;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ull;
  return static_cast<std::uint32_t>(x >> 32);
}

enum class Role { query, key, value };

/// One pair of neighbouring channels a thread; [tokens, heads, head_dim], the first token at position
/// `first`.
static __global__ void make_tokens(__half2 *out, long long tokens, long long first, int heads,
                                   Role role) {
  constexpr int pairs = head_dim / 2;
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= tokens * heads * pairs) return;
  const int pair = static_cast<int>(i % pairs), head = static_cast<int>(i / pairs % heads);
  const long long position = first + i / (pairs * heads);
  const auto number = static_cast<std::uint64_t>(((position * heads + head) * pairs + pair) * 4 +
                                                 static_cast<int>(role)) *
                      2;
  const float u = (static_cast<float>(scramble(number)) + 1.0f) * 0x1p-32f;
  float sine, cosine;
  sincospif(2 * static_cast<float>(scramble(number + 1)) * 0x1p-32f, &sine, &cosine);
  const float radius = sqrtf(-2 * logf(fminf(u, 1.0f)));
  float x = radius * cosine, y = radius * sine;
  if (role != Role::value) {
    constexpr float narrow = 0.3f;
    const float width = powf(narrow, static_cast<float>(pair) / (pairs - 1));
    x *= width;
    y *= width;
    if (role == Role::key) x += 0.5f * width;
    const double angle = static_cast<double>(position) * pow(rotary_base, -1.0 * pair / pairs);
    sincosf(static_cast<float>(fmod(angle, 6.283185307179586)), &sine, &cosine);
    const float turned = x * cosine - y * sine;
    y = x * sine + y * cosine;
    x = turned;
  }
  out[i] = __floats2half2_rn(x, y);
}

/// Tokens [first, first + tokens) of a sequence.
class Tokens {
 public:
  Tokens(const Shape &shape, squat::Index tokens, long long first, cudaStream_t stream)
      : shape_(shape),
        tokens_(tokens),
        q_(elements(shape.query_heads)),
        k_(elements(shape.kv_heads)),
        v_(elements(shape.kv_heads)),
        out_(elements(shape.query_heads)) {
    make(first, stream);
  }

  /// Makes those of another place in the same memory.
  void make(long long first, cudaStream_t stream) {
    fill(q_, shape_.query_heads, first, Role::query, stream);
    fill(k_, shape_.kv_heads, first, Role::key, stream);
    fill(v_, shape_.kv_heads, first, Role::value, stream);
  }

  using View = squat::TensorView<squat::half>;
  View q() const { return view(q_, shape_.query_heads); }
  View k() const { return view(k_, shape_.kv_heads); }
  View v() const { return view(v_, shape_.kv_heads); }
  View out() const { return view(out_, shape_.query_heads); }

 private:
  std::size_t elements(int heads) const { return static_cast<std::size_t>(tokens_ * heads * head_dim); }

  View view(const squat::cuda::DeviceBuffer<squat::half> &array, int heads) const {
    return {array.data(), tokens_, heads, head_dim};
  }

  void fill(squat::cuda::DeviceBuffer<squat::half> &array, int heads, long long first, Role role,
            cudaStream_t stream) {
    const std::size_t threads = array.size() / 2;
    make_tokens<<<static_cast<unsigned>((threads + 255) / 256), 256, 0, stream>>>(
        reinterpret_cast<__half2 *>(array.data()), tokens_, first, heads, role);
    squat::cuda::check(cudaGetLastError(), "make_tokens");
  }

  Shape shape_;
  squat::Index tokens_;
  squat::cuda::DeviceBuffer<squat::half> q_, k_, v_, out_;
};

}  // namespace bench
