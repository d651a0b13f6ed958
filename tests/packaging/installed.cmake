# Installs the library and builds projects against it with find_package(squat), as users would: the quickstart, from
# headers alone and over squat::compiled, and, where there is nvcc, a program on the CUDA backend.
function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

function(build_and_run name source)
  run(${CMAKE_COMMAND} -S ${source} -B ${WORK}/${name} -D CMAKE_PREFIX_PATH=${WORK}/prefix
      -D CMAKE_CXX_COMPILER=${COMPILER} -D CMAKE_BUILD_TYPE=Debug ${ARGN})
  run(${CMAKE_COMMAND} --build ${WORK}/${name})
endfunction()

if(CONSUMER STREQUAL cuda)
  build_and_run(cuda ${SOURCE}/tests/packaging/cuda_consumer)
  run(${WORK}/cuda/cuda_consumer)
elseif(CONSUMER STREQUAL install)
  file(REMOVE_RECURSE ${WORK})
  run(${CMAKE_COMMAND} --install ${BINARY} --prefix ${WORK}/prefix)
else()
  build_and_run(${CONSUMER} ${SOURCE}/examples/quickstart -D QUICKSTART_LIBRARY=squat::${CONSUMER})
  run(${WORK}/${CONSUMER}/quickstart)
endif()
