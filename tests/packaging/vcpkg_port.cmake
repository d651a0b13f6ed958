# Runs the vcpkg port's portfile with stand-ins for vcpkg's functions, which do what vcpkg's own would: what it installs is
# where it belongs, and vcpkg.json says the version of the headers.
cmake_minimum_required(VERSION 3.25)
set(port ${SOURCE}/cmake/vcpkg/ports/squat)
set(CURRENT_PACKAGES_DIR ${WORK}/packages)
set(FEATURES core)
file(REMOVE_RECURSE ${WORK})

function(run)
  execute_process(COMMAND ${ARGV} OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
endfunction()

function(vcpkg_check_features)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" OUT_FEATURE_OPTIONS FEATURES)
  list(POP_FRONT arg_FEATURES feature option)
  file(READ ${port}/vcpkg.json manifest)
  string(JSON described GET ${manifest} features ${feature} description)
  set(${arg_OUT_FEATURE_OPTIONS} -D${option}=OFF PARENT_SCOPE)
endfunction()

function(vcpkg_cmake_configure)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" SOURCE_PATH OPTIONS)
  run(${CMAKE_COMMAND} -S ${arg_SOURCE_PATH} -B ${WORK}/build -D CMAKE_INSTALL_PREFIX=${CURRENT_PACKAGES_DIR}
      -D CMAKE_CXX_COMPILER=${COMPILER} ${arg_OPTIONS})
endfunction()

function(vcpkg_cmake_install)
  run(${CMAKE_COMMAND} --build ${WORK}/build --target install)
endfunction()

function(vcpkg_cmake_config_fixup)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" CONFIG_PATH "")
  file(RENAME ${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH} ${WORK}/config)
  file(COPY ${WORK}/config/ DESTINATION ${CURRENT_PACKAGES_DIR}/share/squat)
endfunction()

function(vcpkg_fixup_pkgconfig)
endfunction()

function(vcpkg_install_copyright)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "" FILE_LIST)
  file(CONFIGURE OUTPUT ${CURRENT_PACKAGES_DIR}/share/squat/copyright CONTENT "")
  file(COPY_FILE ${arg_FILE_LIST} ${CURRENT_PACKAGES_DIR}/share/squat/copyright)
endfunction()

include(${port}/portfile.cmake)

foreach(file include/squat/squat.hpp share/squat/squat-config.cmake share/squat/squat-targets.cmake share/squat/copyright
        share/pkgconfig/squat.pc)
  if(NOT EXISTS ${CURRENT_PACKAGES_DIR}/${file})
    message(FATAL_ERROR "the port does not install ${file}")
  endif()
endforeach()
file(READ ${port}/vcpkg.json manifest)
string(JSON said GET ${manifest} version)
set(PACKAGE_FIND_VERSION ${said})
include(${CURRENT_PACKAGES_DIR}/share/squat/squat-config-version.cmake)
if(NOT said STREQUAL PACKAGE_VERSION)
  message(FATAL_ERROR "vcpkg.json says version ${said}, the headers ${PACKAGE_VERSION}")
endif()
