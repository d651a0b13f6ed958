# The kernels' tests for AArch64, with the dot product instructions and without, under qemu's user mode.

find_program(SQUAT_AARCH64_COMPILER aarch64-linux-gnu-g++)
find_program(SQUAT_AARCH64_EMULATOR qemu-aarch64)
find_path(SQUAT_GOOGLETEST_SOURCE src/gtest-all.cc PATHS /usr/src/googletest/googletest NO_DEFAULT_PATH)
mark_as_advanced(SQUAT_AARCH64_COMPILER SQUAT_AARCH64_EMULATOR SQUAT_GOOGLETEST_SOURCE)

if(NOT (SQUAT_AARCH64_COMPILER AND SQUAT_AARCH64_EMULATOR AND SQUAT_GOOGLETEST_SOURCE))
  add_test(NAME cpu/neon COMMAND ${CMAKE_COMMAND} -E echo
           "skipped: needs aarch64-linux-gnu-g++, qemu-aarch64 and GoogleTest's source (g++-aarch64-linux-gnu, qemu-user, libgtest-dev)")
  set_tests_properties(cpu/neon PROPERTIES SKIP_REGULAR_EXPRESSION "^skipped")
  return()
endif()

get_target_property(eigen Eigen3::Eigen INTERFACE_INCLUDE_DIRECTORIES)
file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*_test.cpp)
list(FILTER sources EXCLUDE REGEX head_coding_test)  # Eigen's work, not the kernels'
list(TRANSFORM sources REPLACE "(.+)" "#include \"\\1\"\n" OUTPUT_VARIABLE includes)
string(CONCAT includes ${includes})
set(unit ${CMAKE_CURRENT_BINARY_DIR}/neon.cpp)
file(CONFIGURE OUTPUT ${unit} CONTENT "${includes}")
file(GLOB_RECURSE kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/*.hpp)
foreach(architecture IN ITEMS armv8-a armv8.2-a+dotprod)
  set(program ${CMAKE_CURRENT_BINARY_DIR}/neon_${architecture})
  add_custom_command(
    OUTPUT ${program}
    COMMAND ${SQUAT_AARCH64_COMPILER} -std=c++20 -O1 -static -march=${architecture} -I${PROJECT_SOURCE_DIR}/include
            -I${CMAKE_CURRENT_SOURCE_DIR}
            -isystem ${eigen} -I${SQUAT_GOOGLETEST_SOURCE} -I${SQUAT_GOOGLETEST_SOURCE}/include ${unit}
            ${SQUAT_GOOGLETEST_SOURCE}/src/gtest-all.cc ${SQUAT_GOOGLETEST_SOURCE}/src/gtest_main.cc -o ${program}
    DEPENDS ${unit} ${sources} ${kernels}
    VERBATIM)
  add_custom_target(build_neon_${architecture} ALL DEPENDS ${program})
  add_test(NAME cpu/neon/${architecture} COMMAND ${SQUAT_AARCH64_EMULATOR} ${program})
endforeach()
