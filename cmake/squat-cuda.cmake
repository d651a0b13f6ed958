# squat::cuda, for programs that include <squat/squat.cuh>: where there is a CUDA toolkit.
find_package(CUDAToolkit QUIET)
if(CUDAToolkit_FOUND AND NOT TARGET squat::cuda)
  add_library(squat::cuda INTERFACE IMPORTED GLOBAL)
  target_link_libraries(squat::cuda INTERFACE squat::squat CUDA::cudart)
  target_compile_definitions(squat::cuda INTERFACE EIGEN_NO_CUDA)
  # CMake 3.25 knows no CUDA 20 for every nvcc: name the standard ourselves.
  target_compile_options(squat::cuda INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
endif()
