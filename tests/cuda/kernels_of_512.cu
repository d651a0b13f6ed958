// Of half rows and of more than 256 channels.

#include "page_kernels.cuh"

namespace squat::cuda {

TEST_KERNELS(, half, 576, 32, 2, 2)
TEST_KERNELS(, half, 512, 64, 4, 4)
TEST_KERNELS(, half, 512, 64, 16, 16)
TEST_ROW_KERNELS(, half, 512)
TEST_ROW_KERNELS(, half, 576)

}  // namespace squat::cuda
