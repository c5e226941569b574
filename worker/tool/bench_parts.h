// The parts of a step that move bytes, measured beside a baseline in the same run.
#pragma once

#include <nlohmann/json.hpp>

#include "common/config.h"
#include "common/result.h"

namespace tessera::tool {

struct BenchCollectiveOptions {
  int ranks = 2, tiles = 4;
  int64_t megabytes = 16, repeats = 15;  // of one bucket
};
// The defined sum over `tiles` tiles by `ranks` ranks (threads of this process, TCP over the loopback) beside a plain float
// all-reduce over the same transport. Seconds of a round are its slowest rank's. Error: kRebuildWorld.
Result<nlohmann::json> bench_collective(const BenchCollectiveOptions& options);

// AdamW, EMA and the state digest on one thread, beside memcpy.
Result<nlohmann::json> bench_update(const FunctionConfig& function, int64_t repeats);

}  // namespace tessera::tool
