# Installs the library and builds projects against it with find_package(squat), as users would: the quickstart, from
# headers alone and over squat::compiled, and, where there is nvcc, a program on the CUDA backend; the quickstart also by
# pkg-config, and from the Debian package, unpacked into a root of its own. A small program by each way to add the sources.
function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

function(build name source)
  run(${CMAKE_COMMAND} -S ${source} -B ${WORK}/${name} -D CMAKE_PREFIX_PATH=${WORK}/prefix
      -D CMAKE_CXX_COMPILER=${COMPILER} -D CMAKE_BUILD_TYPE=Debug ${ARGN})
  run(${CMAKE_COMMAND} --build ${WORK}/${name})
endfunction()

# The quickstart, or of headers alone a program that only includes them, as a Makefile would build it, by packages of what
# is installed below `prefix`.
function(build_by_pkg_config name prefix)
  file(GLOB_RECURSE found ${prefix}/*.pc)
  list(TRANSFORM found REPLACE "/[^/]*$" "")
  list(REMOVE_DUPLICATES found)
  list(JOIN found ":" folders)
  set(ENV{PKG_CONFIG_PATH} ${folders})
  foreach(package IN LISTS ARGN)
    execute_process(COMMAND pkg-config --cflags --libs ${package} OUTPUT_VARIABLE flags OUTPUT_STRIP_TRAILING_WHITESPACE
                    COMMAND_ERROR_IS_FATAL ANY)
    separate_arguments(flags)
    file(MAKE_DIRECTORY ${WORK}/${name})
    set(program ${SOURCE}/examples/quickstart/main.cpp)
    if(package STREQUAL squat)
      set(program ${SOURCE}/tests/packaging/subproject/main.cpp)
    endif()
    run(${COMPILER} -std=c++20 ${program} -o ${WORK}/${name}/${package} ${flags})
    run(${WORK}/${name}/${package})
  endforeach()
endfunction()

if(CONSUMER STREQUAL pkg_config)
  build_by_pkg_config(pkg_config ${WORK}/prefix squat squat-compiled)
elseif(CONSUMER STREQUAL debian)
  run(${CMAKE_CPACK_COMMAND} --config ${BINARY}/CPackConfig.cmake -G DEB -B ${WORK}/package)
  file(GLOB package ${WORK}/package/libsquat-dev_*.deb)
  run(dpkg-deb --extract ${package} ${WORK}/root)
  build_by_pkg_config(debian_pkg_config ${WORK}/root squat-compiled)
  build(debian ${SOURCE}/examples/quickstart -D CMAKE_PREFIX_PATH=${WORK}/root/usr -D QUICKSTART_LIBRARY=squat::compiled)
  run(${WORK}/debian/quickstart)
elseif(CONSUMER STREQUAL cuda)
  build(cuda ${SOURCE}/tests/packaging/cuda_consumer -D "CMAKE_CUDA_ARCHITECTURES=${ARCHITECTURES}"
        -D "CMAKE_CUDA_FLAGS=${CUDA_FLAGS}")
  run(${WORK}/cuda/cuda_consumer)
elseif(CONSUMER STREQUAL add_subdirectory OR CONSUMER STREQUAL fetch_content)
  build(${CONSUMER} ${SOURCE}/tests/packaging/subproject -D SQUAT=${SOURCE} -D WAY=${CONSUMER})
  run(${WORK}/${CONSUMER}/consumer)
elseif(CONSUMER STREQUAL install)
  file(REMOVE_RECURSE ${WORK})
  run(${CMAKE_COMMAND} --install ${BINARY} --prefix ${WORK}/prefix)
else()
  build(${CONSUMER} ${SOURCE}/examples/quickstart -D QUICKSTART_LIBRARY=squat::${CONSUMER})
  run(${WORK}/${CONSUMER}/quickstart)
endif()
