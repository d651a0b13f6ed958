# The server as its clients see it: curl, sockets and the openai client over the loopback.
set(model ${CMAKE_CURRENT_BINARY_DIR}/small_model.gguf)
add_test(NAME serve/write_model COMMAND serve_tests --gtest_filter=SmallModel.*)
set_tests_properties(serve/write_model PROPERTIES ENVIRONMENT SQUAT_SMALL_MODEL=${model} FIXTURES_SETUP small_model)

function(squat_add_client name)
  add_test(NAME serve/${name} COMMAND ${SQUAT_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/serve/${name}_test.py $<TARGET_FILE:serve>
                                      ${model} ${ARGN})
  set_tests_properties(serve/${name} PROPERTIES FIXTURES_REQUIRED small_model SKIP_RETURN_CODE 77 TIMEOUT 300)
endfunction()
squat_add_client(http)
squat_add_client(openai ${CMAKE_CURRENT_BINARY_DIR}/openai_venv)
