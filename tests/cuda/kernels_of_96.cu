// Of bfloat16 rows and 96 channels.

#include "page_kernels.cuh"

namespace squat::cuda {

TEST_KERNELS(, bfloat16, 96, 32, 3, 3)
TEST_ROW_KERNELS(, bfloat16, 96)

}  // namespace squat::cuda
