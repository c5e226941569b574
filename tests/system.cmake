# Stories over the real binaries as processes (tests/integration/*.py, standard library only).
find_package(Python3 REQUIRED COMPONENTS Interpreter)
function(tessera_story name label timeout)
  add_test(NAME ${label}.${name} COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/integration/${name}.py ${ARGN})
  set_tests_properties(${label}.${name} PROPERTIES LABELS ${label} TIMEOUT ${timeout} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}/tests/integration
    ENVIRONMENT "TESSERA_BIN=${CMAKE_BINARY_DIR}/bin" RUN_SERIAL ON)
endfunction()
if(TESSERA_TORCH)
  tessera_story(test_world integration 1200)
  tessera_story(test_store integration 600)
  tessera_story(test_cluster integration 300)
  tessera_story(test_evaluate integration 300)
  tessera_story(test_cifar integration 300)
  tessera_story(test_import integration 300)
  tessera_story(test_web web 300)
endif()
# The data path alone, without LibTorch: real loaders, and trainers reduced to their fetch thread. Python of the venv, which
# has moto, an S3 server.
add_executable(tile_consumer integration/loader/tile_consumer.cpp ${CMAKE_SOURCE_DIR}/worker/trainer/fetch.cpp ${CMAKE_SOURCE_DIR}/worker/trainer/header_check.cpp
  ${CMAKE_SOURCE_DIR}/worker/collective/mesh.cpp)
target_link_libraries(tile_consumer PRIVATE tessera_flags tessera_proto tessera_common CLI11::CLI11)
set_target_properties(tile_consumer PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
if(TESSERA_TORCH)
  get_filename_component(venv_python ${torch_dir}/../../../../bin/python ABSOLUTE)
  foreach(story test_sources test_loader_sweep)
    add_test(NAME loader.${story} COMMAND ${venv_python} ${CMAKE_SOURCE_DIR}/tests/integration/loader/${story}.py)
    set_tests_properties(loader.${story} PROPERTIES LABELS loader TIMEOUT 3600 RUN_SERIAL ON
      ENVIRONMENT "TESSERA_BIN=${CMAKE_BINARY_DIR}/bin;TESSERA_TESTS=${CMAKE_BINARY_DIR}/tests")
  endforeach()
endif()
