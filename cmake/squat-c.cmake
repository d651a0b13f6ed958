# squat::c: libsquat.so, which shows the functions of squat.h alone.
add_library(squat_c SHARED ${CMAKE_CURRENT_LIST_DIR}/compiled/c_interface.cpp)
add_library(squat::c ALIAS squat_c)
set_target_properties(squat_c PROPERTIES OUTPUT_NAME squat EXPORT_NAME c VERSION ${PROJECT_VERSION}
                      SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
                      CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
target_link_libraries(squat_c PRIVATE $<BUILD_INTERFACE:squat_compiled>)
target_include_directories(squat_c INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:include>)
if(CMAKE_SYSTEM_NAME STREQUAL Linux)
  target_link_options(squat_c PRIVATE -Wl,--exclude-libs,ALL)
endif()
if(TARGET squat_warnings)
  target_link_libraries(squat_c PRIVATE $<BUILD_INTERFACE:squat_warnings>)
endif()
