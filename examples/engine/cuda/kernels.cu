#include "cuda/kernels.hpp"

namespace engine::cuda {
namespace {

constexpr int block = 256;

unsigned blocks_of(std::size_t threads) { return static_cast<unsigned>((threads + block - 1) / block); }

__device__ std::size_t thread_index() {
  return static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

/// Pointers of SplitRows, for kernels.
struct Halves {
  __half *high;
  __half *low;

  /// Beyond float16's range the low part takes the rest, up to twice the range.
  __device__ void store(std::size_t i, float x) const {
    constexpr float most = 65504.0f;
    high[i] = __float2half_rn(fminf(fmaxf(x, -most), most));
    low[i] = __float2half_rn(x - __half2float(high[i]));
  }
};

Halves halves(const SplitRows &rows) { return {rows.high.data(), rows.low.data()}; }

/// Rows of floats that something is added to.
struct Sums {
  float *sum;

  __device__ void store(std::size_t i, float x) const { sum[i] += x; }
};

/// Of all lanes of a warp, for all of them.
__device__ float sum_of_warp(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

__global__ void embed_rows(const __half *embedding, const int *tokens, float scale, int width,
                           std::size_t count, float *x) {
  const std::size_t i = thread_index();
  if (i >= count) return;
  const std::size_t row = i / width;
  x[i] = scale * __half2float(embedding[static_cast<std::size_t>(tokens[row]) * width + i % width]);
}

/// One block a row. Rows: Halves or Sums.
template <class Rows>
__global__ void normalize_rows(const float *x, const int *from, const float *weight, float epsilon,
                               int width, Rows y) {
  __shared__ float sums[block / 32];
  const std::size_t row = blockIdx.x;
  x += static_cast<std::size_t>(from == nullptr ? row : from[row]) * width;
  float sum = 0;
  for (int i = threadIdx.x; i < width; i += block) sum += x[i] * x[i];
  sum = sum_of_warp(sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (float part : sums) sum += part;
  const float scale = 1 / sqrtf(sum / static_cast<float>(width) + epsilon);
  for (int i = threadIdx.x; i < width; i += block) y.store(row * width + i, x[i] * scale * weight[i]);
}

/// Turns two channels of a head. The angle is worked out in double precision: a position times a
/// frequency of 1 is thousands of turns.
__device__ void turn(float *first, float *second, float a, float b, int position, float frequency) {
  double sine, cosine;
  sincos(static_cast<double>(position) * static_cast<double>(frequency), &sine, &cosine);
  const auto c = static_cast<float>(cosine), s = static_cast<float>(sine);
  *first = a * c - b * s;
  *second = a * s + b * c;
}

/// One warp a head. A channel is written by the lane that read it, once all have been summed.
__global__ void finish_heads_of_rows(float *qkv, std::size_t count, Heads heads) {
  const std::size_t i = thread_index() / 32;
  if (i >= count) return;
  const int all = heads.query_heads + 2 * heads.kv_heads, head = static_cast<int>(i % all),
            lane = threadIdx.x % 32;
  const bool query = head < heads.query_heads, value = head >= heads.query_heads + heads.kv_heads;
  float *const x = qkv + i * heads.head_dim;
  const float *const bias = heads.bias == nullptr ? nullptr : heads.bias + head * heads.head_dim;
  const float *const norm = query ? heads.query_norm : value ? nullptr : heads.key_norm;
  const int pairs = value ? 0 : heads.pairs;
  const auto biased = [&](int channel) { return x[channel] + (bias == nullptr ? 0 : bias[channel]); };
  float scale = 1;
  if (norm != nullptr) {
    float sum = 0;
    for (int channel = lane; channel < heads.head_dim; channel += 32)
      sum += biased(channel) * biased(channel);
    scale = 1 / sqrtf(sum_of_warp(sum) / static_cast<float>(heads.head_dim) + heads.epsilon);
  }
  const auto normal = [&](int channel) {
    return biased(channel) * (norm == nullptr ? 1 : scale * norm[channel]);
  };
  const bool halves = heads.pairing == squat::RotaryPairs::halves;
  for (int pair = lane; pair < pairs; pair += 32) {
    const int first = halves ? pair : 2 * pair, second = first + (halves ? pairs : 1);
    turn(x + first, x + second, normal(first), normal(second), heads.positions[i / all],
         heads.inverse_frequencies[pair]);
  }
  for (int channel = 2 * pairs + lane; channel < heads.head_dim; channel += 32)
    x[channel] = normal(channel);
}

__global__ void split_elements(const float *x, std::size_t count, Halves y) {
  const std::size_t i = thread_index();
  if (i < count) y.store(i, x[i]);
}

__device__ float activate(Activation activation, float x) {
  if (activation == Activation::silu) return x / (1 + expf(-x));
  constexpr float slope = 0.7978845608f;  // sqrt(2 / pi)
  return 0.5f * x * (1 + tanhf(slope * (x + 0.044715f * x * x * x)));
}

__global__ void gate_rows(const float *gate_and_up, Activation activation, int width, std::size_t count,
                          Halves y) {
  const std::size_t i = thread_index();
  if (i >= count) return;
  const float *gate = gate_and_up + i / width * 2 * width + i % width;
  y.store(i, activate(activation, *gate) * gate[width]);
}

__global__ void soft_cap_elements(float *x, std::size_t count, float cap) {
  const std::size_t i = thread_index();
  if (i < count) x[i] = cap * tanhf(x[i] / cap);
}

void check_launch(const char *what) { check(cudaGetLastError(), what); }

}  // namespace

void embed(const __half *embedding, const int *tokens, float scale, int rows, int width, float *x) {
  const std::size_t count = static_cast<std::size_t>(rows) * width;
  embed_rows<<<blocks_of(count), block>>>(embedding, tokens, scale, width, count, x);
  check_launch("embed");
}

void normalize(const float *x, const int *from, const float *weight, float epsilon, int rows, int width,
               const SplitRows &y) {
  normalize_rows<<<static_cast<unsigned>(rows), block>>>(x, from, weight, epsilon, width, halves(y));
  check_launch("normalize");
}

void add_normalized(const float *x, const float *weight, float epsilon, int rows, int width, float *y) {
  normalize_rows<<<static_cast<unsigned>(rows), block>>>(x, nullptr, weight, epsilon, width, Sums{y});
  check_launch("add_normalized");
}

void finish_heads(float *qkv, int rows, const Heads &heads) {
  const std::size_t count = static_cast<std::size_t>(rows) * (heads.query_heads + 2 * heads.kv_heads);
  finish_heads_of_rows<<<blocks_of(32 * count), block>>>(qkv, count, heads);
  check_launch("finish_heads");
}

void split(const float *x, std::size_t count, const SplitRows &y) {
  split_elements<<<blocks_of(count), block>>>(x, count, halves(y));
  check_launch("split");
}

void gate(const float *gate_and_up, Activation activation, int rows, int width, const SplitRows &y) {
  const std::size_t count = static_cast<std::size_t>(rows) * width;
  gate_rows<<<blocks_of(count), block>>>(gate_and_up, activation, width, count, halves(y));
  check_launch("gate");
}

void soft_cap(float *x, std::size_t count, float cap) {
  soft_cap_elements<<<blocks_of(count), block>>>(x, count, cap);
  check_launch("soft_cap");
}

}  // namespace engine::cuda
