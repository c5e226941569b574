# The command: pure parts, files, and the real program against a small fake coordinator.
tessera_test(test_ops LABEL unit
  SOURCES ${CMAKE_SOURCE_DIR}/tests/unit/ops/model_size_test.cpp
  LIBS tessera_cli_core tessera_common)
