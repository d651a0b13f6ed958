# squat::compiled: the CPU backend as a static library. Programs that link it compile the cache alone, in a second or
# two, and run the kernels of whatever machine they are started on.
#
# On x86-64 it holds one set of kernels for each of SQUAT_INSTRUCTION_SETS. Each is compiled with flags of its own, and
# shares inline functions of Eigen's and the standard library's by name with all others, which could run on another
# machine than it was compiled for. So each set becomes one object whose only symbol is the table of its kernels.

set(SQUAT_INSTRUCTION_SETS "" CACHE STRING "Kernels of squat::compiled on x86-64: portable;avx2;avx512_vnni, or native")
if(NOT SQUAT_INSTRUCTION_SETS)
  set(SQUAT_INSTRUCTION_SETS native)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    set(SQUAT_INSTRUCTION_SETS portable avx2 avx512_vnni)
  endif()
endif()
set(squat_flags_portable -march=x86-64)
set(squat_flags_avx2 -march=x86-64-v3)
set(squat_flags_avx512 -march=x86-64-v4)
set(squat_flags_avx512_vnni -march=x86-64-v4 -mavx512vnni)
set(squat_flags_native -march=native)

# lld cannot take groups of sections apart.
find_program(SQUAT_GNU_LD ld.bfd)
find_program(SQUAT_OBJCOPY NAMES objcopy llvm-objcopy)
mark_as_advanced(SQUAT_GNU_LD SQUAT_OBJCOPY)

add_library(squat_compiled STATIC)
add_library(squat::compiled ALIAS squat_compiled)
set_target_properties(squat_compiled PROPERTIES EXPORT_NAME compiled POSITION_INDEPENDENT_CODE ON)
target_link_libraries(squat_compiled PUBLIC squat)
target_compile_definitions(squat_compiled PUBLIC SQUAT_COMPILED)
target_sources(squat_compiled PRIVATE ${CMAKE_CURRENT_LIST_DIR}/compiled/dispatch.cpp
                                      ${CMAKE_CURRENT_LIST_DIR}/compiled/cpu_group.cpp)
if(TARGET squat_warnings)
  target_link_libraries(squat_compiled PRIVATE $<BUILD_INTERFACE:squat_warnings>)
endif()

set(squat_every_set)
foreach(set IN LISTS SQUAT_INSTRUCTION_SETS)
  if(NOT DEFINED squat_flags_${set})
    message(FATAL_ERROR "squat: SQUAT_INSTRUCTION_SETS holds ${set}, must be portable, avx2, avx512, avx512_vnni or native")
  endif()
  string(APPEND squat_every_set " of(${set})")
  add_library(squat_kernels_${set} OBJECT ${CMAKE_CURRENT_LIST_DIR}/compiled/kernels.cpp)
  set_target_properties(squat_kernels_${set} PROPERTIES POSITION_INDEPENDENT_CODE ON INTERPROCEDURAL_OPTIMIZATION OFF)
  target_link_libraries(squat_kernels_${set} PRIVATE squat)
  if(TARGET squat_warnings)
    target_link_libraries(squat_kernels_${set} PRIVATE squat_warnings)
  endif()
  target_compile_definitions(squat_kernels_${set} PRIVATE SQUAT_COMPILED SQUAT_KERNELS=kernels_${set})
  target_compile_options(squat_kernels_${set} PRIVATE ${squat_flags_${set}}
                         $<$<NOT:$<CONFIG:Debug>>:-O3>  # -O2 makes 2-bit steps a fifth slower
                         $<$<CXX_COMPILER_ID:GNU>:-fno-gnu-unique>)  # such symbols cannot be kept apart
  if(SQUAT_GNU_LD AND SQUAT_OBJCOPY AND CMAKE_EXECUTABLE_FORMAT STREQUAL ELF)
    set(alone ${CMAKE_CURRENT_BINARY_DIR}/kernels_${set}.o)
    add_custom_command(
      OUTPUT ${alone}
      COMMAND ${SQUAT_GNU_LD} -r --force-group-allocation -o ${alone} $<TARGET_OBJECTS:squat_kernels_${set}>
      COMMAND ${SQUAT_OBJCOPY} --wildcard --keep-global-symbol=*kernels_${set}* ${alone}
      DEPENDS squat_kernels_${set} $<TARGET_OBJECTS:squat_kernels_${set}> COMMAND_EXPAND_LISTS VERBATIM)
    set_source_files_properties(${alone} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
    target_sources(squat_compiled PRIVATE ${alone})
  else()
    list(LENGTH SQUAT_INSTRUCTION_SETS count)
    if(count GREATER 1)
      message(FATAL_ERROR "squat: several instruction sets ask for GNU ld and objcopy: set SQUAT_INSTRUCTION_SETS to one")
    endif()
    target_sources(squat_compiled PRIVATE $<TARGET_OBJECTS:squat_kernels_${set}>)
  endif()
endforeach()
file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/compiled/instruction_sets.hpp
     CONTENT "#pragma once\n#define SQUAT_FOR_EACH_INSTRUCTION_SET(of)${squat_every_set}\n")
target_include_directories(squat_compiled PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/compiled)
