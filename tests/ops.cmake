# The command: pure parts, files, and the real program against a fake coordinator and fake programs beside it.
set(here ${CMAKE_CURRENT_LIST_DIR})
tessera_test(test_ops LABEL unit
  SOURCES ${here}/unit/ops/model_size_test.cpp ${here}/unit/ops/start_rule_test.cpp ${here}/unit/ops/words_test.cpp ${here}/unit/ops/files_test.cpp ${here}/unit/ops/bench_train_test.cpp
  LIBS tessera_cli_core tessera_common)
tessera_test(test_command LABEL integration TIMEOUT 180
  SOURCES ${here}/integration/ops/command_test.cpp
  LIBS tessera_cli_core tessera_common)
target_compile_definitions(test_command PRIVATE TESSERA_BIN_DIR="${CMAKE_BINARY_DIR}/bin")
add_dependencies(test_command tessera)
