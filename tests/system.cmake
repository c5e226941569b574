# Stories over the real binaries as processes (tests/integration/*.py, standard library only).
find_package(Python3 REQUIRED COMPONENTS Interpreter)
function(tessera_story name label timeout)
  add_test(NAME ${label}.${name} COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/integration/${name}.py ${ARGN})
  set_tests_properties(${label}.${name} PROPERTIES LABELS ${label} TIMEOUT ${timeout} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}/tests/integration
    ENVIRONMENT "TESSERA_BIN=${CMAKE_BINARY_DIR}/bin" RUN_SERIAL ON)
endfunction()
if(TESSERA_TORCH)
  tessera_story(test_world integration 900)
  tessera_story(test_cluster integration 300)
  tessera_story(test_evaluate integration 300)
  tessera_story(test_cifar integration 300)
  tessera_story(test_web web 300)
endif()
