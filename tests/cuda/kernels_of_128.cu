// Of half rows and 128 channels.

#include "page_kernels.cuh"

namespace squat::cuda {

TEST_KERNELS(, half, 128, 128, 2, 3)
TEST_KERNELS(, half, 128, 128, 8, 16)
TEST_ROW_KERNELS(, half, 128)

}  // namespace squat::cuda
