// The kernels of one page layout, see CMakeLists.txt.

#include "page_kernels.cuh"
