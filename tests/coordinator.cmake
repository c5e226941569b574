add_library(tessera_sim_cluster STATIC sim/cluster.cpp sim/faults.cpp)
target_link_libraries(tessera_sim_cluster PRIVATE tessera_flags PUBLIC tessera_coordinator_core)
tessera_program(tessera-sim sim/main.cpp LIBS tessera_sim_cluster CLI11::CLI11)
tessera_test(sim_test LABEL sim SOURCES sim/sim_test.cpp LIBS tessera_sim_cluster)
# Recorded by hand: build/release/tests/world_change_bench WORKERS [CHANGES].
add_executable(world_change_bench perf/world_change_bench.cpp)
target_link_libraries(world_change_bench PRIVATE tessera_flags tessera_proto nlohmann_json::nlohmann_json)
set_target_properties(world_change_bench PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
tessera_test(machine_test LABEL unit SOURCES unit/coordinator/machine_test.cpp LIBS tessera_coordinator_core)
