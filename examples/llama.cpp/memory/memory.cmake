# llama.cpp's src/CMakeLists.txt includes this, once llama.cpp.patch is applied. SQUAT is the folder of this repository.
foreach(part TESTS BENCHMARKS EXAMPLES CUDA)
  set(SQUAT_BUILD_${part} OFF)
endforeach()
set(SQUAT_BUILD_COMPILED ON)
get_directory_property(llama_options COMPILE_OPTIONS)
set_directory_properties(PROPERTIES COMPILE_OPTIONS "")  # warnings that are llama.cpp's own
add_subdirectory(${SQUAT} squat EXCLUDE_FROM_ALL)
set_directory_properties(PROPERTIES COMPILE_OPTIONS "${llama_options}")

# llama.cpp is C++17, squat is C++20: so these are objects of their own.
set(squat_llama ${SQUAT}/examples/llama.cpp)
add_library(llama-squat OBJECT ${squat_llama}/memory/attention_shape.cpp ${squat_llama}/memory/llama_memory_squat.cpp
                               ${squat_llama}/memory/memory_sequences.cpp ${squat_llama}/layer_groups.cpp
                               ${squat_llama}/rotary_of.cpp)
target_include_directories(llama-squat PRIVATE ${squat_llama})
target_include_directories(llama-squat SYSTEM PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/../include)
target_link_libraries(llama-squat PRIVATE ggml squat::compiled)
set_target_properties(llama-squat PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_sources(llama PRIVATE $<TARGET_OBJECTS:llama-squat>)
target_link_libraries(llama PRIVATE $<LINK_ONLY:squat::compiled>)
set_source_files_properties(llama-graph.cpp llama-model.cpp PROPERTIES INCLUDE_DIRECTORIES ${squat_llama}/memory)

# The memory's calls beside those of llama.cpp's own.
add_executable(llama-squat-check EXCLUDE_FROM_ALL ${SQUAT}/tests/llama.cpp/memory_check.cpp
                                                  ${squat_llama}/attention_tap.cpp ${squat_llama}/llama_model.cpp)
target_include_directories(llama-squat-check PRIVATE ${squat_llama})
target_link_libraries(llama-squat-check PRIVATE llama squat::squat)
