#pragma once

// Kernels that several tests share, of page layouts and of head_dim alone: those of a head_dim are
// compiled once, in kernels_of_*.cu.

#include "squat/cuda/coding/device_statistics.cuh"
#include "squat/cuda/kernels/append_step.cuh"
#include "squat/cuda/kernels/attend_call.cuh"
#include "squat/cuda/kernels/exact_rows.cuh"
#include "squat/cuda/kernels/launch_attend.cuh"
#include "squat/cuda/kernels/pack_keys.cuh"
#include "squat/cuda/kernels/pack_values.cuh"

namespace squat::cuda {

#define TEST_KERNELS(prefix, T, ...)                                                                 \
  prefix template void launch_attend<PageLayout<__VA_ARGS__>, T, float>(                             \
      const AttendCall<float> &, ValueCoding, int, void *, cudaStream_t);                            \
  prefix template void launch_pack_keys<PageLayout<__VA_ARGS__>, T>(const PackCall &, cudaStream_t); \
  prefix template void launch_pack_values<PageLayout<__VA_ARGS__>, T>(const PackCall &, cudaStream_t);

#define TEST_ROW_KERNELS(prefix, T, HeadDim)                                                           \
  prefix template void launch_append_step<HeadDim, T, float>(                                          \
      const BatchEntry *, int, int, DeviceTensor<const float>, DeviceTensor<const float>,              \
      std::uint32_t *, cudaStream_t);                                                                  \
  prefix template void launch_append_rows<HeadDim, T, float>(const BatchEntry *, int, int, int,        \
                                                             DeviceTensor<const float>,                \
                                                             DeviceTensor<const float>, cudaStream_t); \
  prefix template void launch_copy_rows<HeadDim>(ExactSlots, int, int, int, ExactSlots, int,           \
                                                 cudaStream_t);                                        \
  prefix template void launch_turn_rows<HeadDim, T>(ExactSlots, int, int, int, const TileTables &,     \
                                                    long long, cudaStream_t);                          \
  prefix template void DeviceStatistics::observe<HeadDim, float>(                                      \
      const ObservedRows<float> &, const TileTables &, DeviceBuffer<std::byte> &, cudaStream_t);

TEST_KERNELS(extern, half, 64, 32, 2, 2)
TEST_KERNELS(extern, half, 64, 32, 3, 4)
TEST_KERNELS(extern, half, 64, 32, 16, 16)
TEST_KERNELS(extern, half, 128, 128, 2, 3)
TEST_KERNELS(extern, half, 128, 128, 4, 4)
TEST_KERNELS(extern, half, 128, 128, 8, 16)
TEST_KERNELS(extern, bfloat16, 96, 32, 3, 3)
TEST_KERNELS(extern, half, 576, 32, 2, 2)
TEST_KERNELS(extern, half, 512, 64, 4, 4)
TEST_KERNELS(extern, half, 512, 64, 16, 16)
TEST_ROW_KERNELS(extern, half, 64)
TEST_ROW_KERNELS(extern, half, 128)
TEST_ROW_KERNELS(extern, bfloat16, 96)
TEST_ROW_KERNELS(extern, half, 512)
TEST_ROW_KERNELS(extern, half, 576)

}  // namespace squat::cuda
