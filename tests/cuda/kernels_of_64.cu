// Of half rows and 64 channels.

#include "page_kernels.cuh"

namespace squat::cuda {

TEST_KERNELS(, half, 64, 32, 2, 2)
TEST_KERNELS(, half, 64, 32, 3, 4)
TEST_KERNELS(, half, 64, 32, 16, 16)
TEST_ROW_KERNELS(, half, 64)

}  // namespace squat::cuda
