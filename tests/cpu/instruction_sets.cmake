# The kernels' tests for each instruction set of x86-64. Every one is compiled everywhere; what the machine does not run
# goes through qemu's user mode, which knows AVX2 but not AVX-512, or says that it is skipped.

if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" OR CMAKE_CROSSCOMPILING)
  return()
endif()

find_program(SQUAT_X86_64_EMULATOR NAMES qemu-x86_64 qemu-x86_64-static)
mark_as_advanced(SQUAT_X86_64_EMULATOR)

# As in cmake/squat-compiled.cmake, and what /proc/cpuinfo calls the last thing each of them needs.
set(flag_portable sse2)
set(flag_avx2 avx2)
set(flag_avx512 avx512dq)
set(flag_avx512_vnni avx512_vnni)

file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*_test.cpp)
list(FILTER sources EXCLUDE REGEX head_coding_test)  # Eigen's work, not the kernels'
set_target_properties(cpu_tests PROPERTIES SOURCES ${CMAKE_CURRENT_LIST_DIR}/head_coding_test.cpp)  # this machine's are among them
foreach(set IN ITEMS portable avx2 avx512 avx512_vnni)
  add_executable(cpu_tests_${set} ${sources})
  target_link_libraries(cpu_tests_${set} PRIVATE squat_development GTest::gtest_main Threads::Threads)
  target_include_directories(cpu_tests_${set} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_compile_options(cpu_tests_${set} PRIVATE -O1 ${squat_flags_${set}})
  squat_join_sources(cpu_tests_${set})
  add_test(NAME cpu/${set} COMMAND sh ${CMAKE_CURRENT_LIST_DIR}/run_for.sh ${flag_${set}}
           "${SQUAT_X86_64_EMULATOR}" $<TARGET_FILE:cpu_tests_${set}> --gtest_brief=1)
  set_tests_properties(cpu/${set} PROPERTIES SKIP_RETURN_CODE 77)
endforeach()
