add_library(tessera_sim_cluster STATIC sim/cluster.cpp sim/faults.cpp)
target_link_libraries(tessera_sim_cluster PRIVATE tessera_flags PUBLIC tessera_coordinator_core)
tessera_program(tessera-sim sim/main.cpp LIBS tessera_sim_cluster CLI11::CLI11)
tessera_test(sim_test LABEL sim SOURCES sim/sim_test.cpp LIBS tessera_sim_cluster)
