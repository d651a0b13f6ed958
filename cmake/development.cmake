# What our own tests, benchmarks and examples are compiled with. Nothing of this reaches a project that uses squat.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release)
endif()

# Warnings are errors here, and sanitizers reach all that is linked: of squat::compiled's objects too.
add_library(squat_warnings INTERFACE)
target_compile_options(squat_warnings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror>
                                                $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 -Xcompiler=-Wall -Werror=all-warnings>)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  # GCC 12 warns of its own AVX-512 intrinsics, and of std::string's operator+ (GCC bug 105651).
  target_compile_options(squat_warnings INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wno-uninitialized -Wno-maybe-uninitialized -Wno-restrict>
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wno-uninitialized,-Wno-maybe-uninitialized,-Wno-restrict>)
endif()
if(SQUAT_SANITIZE)
  # Assertions too, whatever the build type. Pointer arithmetic itself is not checked, only what it leads to: clang
  # takes four times as long over it.
  set(sanitizers address,undefined)
  if(SQUAT_SANITIZE STREQUAL thread)
    set(sanitizers thread)
  endif()
  target_compile_options(squat_warnings INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${sanitizers} -fno-sanitize=pointer-overflow
                              -fno-sanitize-recover=all -fno-omit-frame-pointer -UNDEBUG -O1>)
  target_link_options(squat_warnings INTERFACE -fsanitize=${sanitizers})
endif()

# Headers alone, for this machine's instruction set.
add_library(squat_development INTERFACE)
target_link_libraries(squat_development INTERFACE squat::squat squat_warnings)
target_compile_definitions(squat_development INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:EIGEN_NO_CUDA>)
if(SQUAT_NATIVE)
  target_compile_options(squat_development INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-march=native>
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-march=native>
    $<$<COMPILE_LANGUAGE:CUDA>:-diag-suppress=68>)  # nvcc of GCC's AVX-512 intrinsics
endif()

# The same over squat::compiled: what calls the cache compiles in seconds.
add_library(squat_compiled_development INTERFACE)
target_link_libraries(squat_compiled_development INTERFACE squat_development squat::compiled)

# Programs with CUDA: all of the above, for nvcc.
if(SQUAT_BUILD_CUDA)
  add_library(squat_cuda_development INTERFACE)
  target_link_libraries(squat_cuda_development INTERFACE squat_development squat::cuda)
endif()
