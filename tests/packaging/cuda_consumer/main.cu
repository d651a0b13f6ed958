// A cache on the device, of one head_dim and width.

#include <cstdio>
#include <squat/squat.cuh>

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("no CUDA device: compiled and linked, not run");
    return 0;
  }
  squat::KVCache<squat::half, 2, 2, squat::CudaFor<64>> cache(
      {.layers = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 64});
  const squat::SequenceId sequence = cache.add_sequence();
  squat::half *rows = nullptr;
  if (cudaMalloc(&rows, 4 * 64 * sizeof(squat::half)) != cudaSuccess) return 1;
  cudaMemset(rows, 0, 4 * 64 * sizeof(squat::half));
  cache.attend(sequence, 0, squat::TensorView<squat::half>(rows, 1, 1, 64), {rows + 64, 1, 1, 64},
               {rows + 128, 1, 1, 64}, {rows + 192, 1, 1, 64}, cudaStream_t{});
  cache.check();
  return cache.length(sequence) == 1 ? 0 : 1;
}
