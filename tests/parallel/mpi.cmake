# examples/parallel over the ranks of this machine.
function(squat_add_mpi_test name)
  add_test(NAME parallel/mpi_${name}
           COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/parallel/mpi_test.sh ${MPIEXEC_EXECUTABLE} $<TARGET_FILE:split_context> ${ARGN})
  set_tests_properties(parallel/mpi_${name} PROPERTIES TIMEOUT 200 PROCESSORS 2 SKIP_RETURN_CODE 77)
endfunction()
if(TARGET split_context)
  find_package(MPI REQUIRED COMPONENTS CXX)  # for what a folder beside this one has found
  squat_add_mpi_test(2_ranks 2)
  squat_add_mpi_test(3_ranks 3)
  squat_add_mpi_test(a_rank_dies 3 dies)
  add_test(NAME parallel/mpi_network_namespaces
           COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/parallel/namespaces_test.sh ${MPIEXEC_EXECUTABLE} $<TARGET_FILE:split_context>)
  set_tests_properties(parallel/mpi_network_namespaces PROPERTIES TIMEOUT 200 PROCESSORS 2 SKIP_RETURN_CODE 77)
elseif(SQUAT_BUILD_EXAMPLES)
  add_test(NAME parallel/mpi COMMAND sh -c "echo 'no MPI (Debian: libopenmpi-dev, openmpi-bin)'; exit 77")
  set_tests_properties(parallel/mpi PROPERTIES SKIP_RETURN_CODE 77)
endif()
