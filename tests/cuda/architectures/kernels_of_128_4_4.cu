// Of half rows, 128 channels and 4 bits: for GPUs before Hopper, too.

#include "page_kernels.cuh"

namespace squat::cuda {

TEST_KERNELS(, half, 128, 128, 4, 4)

}  // namespace squat::cuda
