# examples/parallel over the GPUs of this machine.
if(TARGET split_context_cuda)
  add_test(NAME parallel/nccl_2_ranks
           COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/parallel/nccl_test.sh $<TARGET_FILE:split_context_cuda>)
  add_test(NAME parallel/nccl_2_ranks_captured
           COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/parallel/nccl_test.sh $<TARGET_FILE:split_context_cuda> graph)
  add_test(NAME parallel/nccl_a_rank_dies
           COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/parallel/nccl_test.sh $<TARGET_FILE:split_context_cuda> dies)
  set_tests_properties(parallel/nccl_2_ranks parallel/nccl_2_ranks_captured parallel/nccl_a_rank_dies
                       PROPERTIES TIMEOUT 200 SKIP_RETURN_CODE 77)
endif()
