// `tessera bench train`: a whole run in real processes, for its speed: coordinator, loaders, trainers as `tessera up` starts
// them, in a folder that is thrown away. Says where the time of a step goes and whether training waited for data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/config.h"
#include "common/process.h"
#include "ops/cli/output.h"

namespace tessera::cli {

struct BenchTrainOptions {
  std::string config;                  // empty: the model options below
  std::vector<std::string> overrides;  // --set
  std::string model = "vit_tiny", precision = "fp32", data;  // data empty: scenes
  int64_t patch = 16, size = 224, tile = 16, tiles = 2, predictor_depth = 6, predictor_dim = 384;
  int64_t workers = 1, loaders = 1, loader_threads = 1, threads = 1;
  int64_t steps = 12, warm_up = 2;     // measured; before them, not measured
  double peak_tflops = 0;              // of one worker; 0: a matrix product measured in this run
};

// What the processes of one kind used: peak resident bytes of the largest, CPU seconds of all.
struct ProcessUse {
  int64_t peak_bytes = 0;
  double cpu_seconds = 0;
};
struct RunUse {
  ProcessUse trainers, loaders;
  double watched_seconds = 0;  // the CPU seconds are of this time
};

// The report of a run. steps: lines of metrics.jsonl in order. The first `warm_up` are left out; at least one must be left.
// product_tflops: what a large matrix product reaches on one worker (peak), 0 when unknown; shares: parts of one gradient
// and update as `bench step` measured them in the same run, empty when it was not.
Json train_report(const std::vector<Json>& steps, int64_t warm_up, const RunUse& use, const FunctionConfig& function, int64_t workers, double product_tflops, const Json& shares);

// Runs it. Errors: those of the configuration, of `tessera up`, of the programs that are missing; kUnavailable when a
// signal ended it.
Result<Json> bench_train(const BenchTrainOptions& options, SignalWatch& signals);

// `tessera bench train ...`: parses, runs, prints. Returns the exit code.
int bench_train_main(const std::vector<std::string>& words);

}  // namespace tessera::cli
