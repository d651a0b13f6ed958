#pragma once

// Kernels of the page layouts that several tests share: kernels.cu compiles each once.

#include "squat/cuda/attend_call.cuh"
#include "squat/cuda/launch_attend.cuh"
#include "squat/cuda/pack_keys.cuh"
#include "squat/cuda/pack_values.cuh"

namespace squat::cuda {

#define TEST_KERNELS(prefix, ...)                                                                       \
  prefix template void launch_attend<PageLayout<__VA_ARGS__>, half, float>(                             \
      const AttendCall<float> &, ValueCoding, int, void *, cudaStream_t);                               \
  prefix template void launch_pack_keys<PageLayout<__VA_ARGS__>, half>(const PackCall &, cudaStream_t); \
  prefix template void launch_pack_values<PageLayout<__VA_ARGS__>, half>(const PackCall &, cudaStream_t);

#ifdef TEST_HEAD_DIM
TEST_KERNELS(, TEST_HEAD_DIM, TEST_GROUP, TEST_KEY_BITS, TEST_VALUE_BITS)
#else
TEST_KERNELS(extern, 64, 32, 2, 2)
TEST_KERNELS(extern, 64, 32, 3, 4)
TEST_KERNELS(extern, 64, 32, 16, 16)
TEST_KERNELS(extern, 128, 128, 2, 3)
TEST_KERNELS(extern, 128, 128, 4, 4)
TEST_KERNELS(extern, 128, 128, 8, 16)
#endif

}  // namespace squat::cuda
