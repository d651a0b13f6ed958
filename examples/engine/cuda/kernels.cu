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

__global__ void embed_rows(const __half *embedding, const int *tokens, int width, std::size_t count,
                           float *x) {
  const std::size_t i = thread_index();
  if (i >= count) return;
  const std::size_t row = i / width;
  x[i] = __half2float(embedding[static_cast<std::size_t>(tokens[row]) * width + i % width]);
}

/// One block a row.
__global__ void normalize_rows(const float *x, const int *from, const float *weight, float epsilon,
                               int width, Halves y) {
  __shared__ float sums[block / 32];
  const std::size_t row = blockIdx.x;
  x += static_cast<std::size_t>(from == nullptr ? row : from[row]) * width;
  float sum = 0;
  for (int i = threadIdx.x; i < width; i += block) sum += x[i] * x[i];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (float part : sums) sum += part;
  const float scale = 1 / sqrtf(sum / static_cast<float>(width) + epsilon);
  for (int i = threadIdx.x; i < width; i += block) y.store(row * width + i, x[i] * scale * weight[i]);
}

/// One thread a pair of channels. The angle is worked out in double precision: a position times a
/// frequency of 1 is thousands of turns.
__global__ void rotate_rows(float *x, int stride, std::size_t count, Rotation rotation) {
  const std::size_t i = thread_index();
  if (i >= count) return;
  const int pair = static_cast<int>(i % rotation.pairs);
  const std::size_t head = i / rotation.pairs % rotation.heads,
                    row = i / rotation.pairs / rotation.heads;
  double sine, cosine;
  sincos(static_cast<double>(rotation.positions[row]) *
             static_cast<double>(rotation.inverse_frequencies[pair]),
         &sine, &cosine);
  const auto c = static_cast<float>(cosine), s = static_cast<float>(sine);
  float *two = x + row * stride + head * rotation.head_dim + 2 * pair;
  const float a = two[0], b = two[1];
  two[0] = a * c - b * s;
  two[1] = a * s + b * c;
}

__global__ void split_elements(const float *x, std::size_t count, Halves y) {
  const std::size_t i = thread_index();
  if (i < count) y.store(i, x[i]);
}

__global__ void gate_rows(const float *gate_and_up, int width, std::size_t count, Halves y) {
  const std::size_t i = thread_index();
  if (i >= count) return;
  const float *gate = gate_and_up + i / width * 2 * width + i % width;
  y.store(i, *gate / (1 + expf(-*gate)) * gate[width]);
}

void check_launch(const char *what) { check(cudaGetLastError(), what); }

}  // namespace

void embed(const __half *embedding, const int *tokens, int rows, int width, float *x) {
  const std::size_t count = static_cast<std::size_t>(rows) * width;
  embed_rows<<<blocks_of(count), block>>>(embedding, tokens, width, count, x);
  check_launch("embed");
}

void normalize(const float *x, const int *from, const float *weight, float epsilon, int rows, int width,
               const SplitRows &y) {
  normalize_rows<<<static_cast<unsigned>(rows), block>>>(x, from, weight, epsilon, width, halves(y));
  check_launch("normalize");
}

void rotate(float *x, int stride, int rows, const Rotation &rotation) {
  const std::size_t count = static_cast<std::size_t>(rows) * rotation.heads * rotation.pairs;
  rotate_rows<<<blocks_of(count), block>>>(x, stride, count, rotation);
  check_launch("rotate");
}

void split(const float *x, std::size_t count, const SplitRows &y) {
  split_elements<<<blocks_of(count), block>>>(x, count, halves(y));
  check_launch("split");
}

void gate(const float *gate_and_up, int rows, int width, const SplitRows &y) {
  const std::size_t count = static_cast<std::size_t>(rows) * width;
  gate_rows<<<blocks_of(count), block>>>(gate_and_up, width, count, halves(y));
  check_launch("gate");
}

}  // namespace engine::cuda
