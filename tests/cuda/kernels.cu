// The kernels of one page layout, see CMakeLists.txt.

#include "caches.cuh"
