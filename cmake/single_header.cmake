# squat_single_header: squat_single.hpp in the build folder, all of squat/squat.hpp in one file.
find_package(Python3 QUIET COMPONENTS Interpreter)
if(Python3_Interpreter_FOUND)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/*.hpp)
  set(maker ${CMAKE_CURRENT_LIST_DIR}/single_header.py)
  set(single_header ${PROJECT_BINARY_DIR}/squat_single.hpp)
  add_custom_command(OUTPUT ${single_header}
                     COMMAND ${Python3_EXECUTABLE} ${maker} ${PROJECT_SOURCE_DIR}/include ${single_header}
                     DEPENDS ${maker} ${headers} VERBATIM)
  add_custom_target(squat_single_header DEPENDS ${single_header})
endif()
