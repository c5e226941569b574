# common/: pure parts, files, child processes; and the rule of which folder may include which.
tessera_test(common_test LABEL unit LIBS tessera_common nlohmann_json::nlohmann_json PkgConfig::XXHASH SOURCES
  unit/common/philox_test.cpp
  unit/common/hash_test.cpp
  unit/common/digest_test.cpp
  unit/common/block_size_test.cpp
  unit/common/config_test.cpp
  unit/common/file_test.cpp
  unit/common/shared_memory_test.cpp
  unit/common/safetensors_test.cpp)
tessera_test(process_test LABEL integration LIBS tessera_common SOURCES unit/common/process_test.cpp)
find_package(Python3 REQUIRED COMPONENTS Interpreter)
add_test(NAME unit.rules COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/unit/rules/includes.py ${CMAKE_SOURCE_DIR})
add_test(NAME unit.rules_self COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/unit/rules/includes.py --self-test)
set_tests_properties(unit.rules unit.rules_self PROPERTIES LABELS unit TIMEOUT 60)
