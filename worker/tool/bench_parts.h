// The parts of a step that move bytes, measured beside a baseline in the same run.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/config.h"
#include "common/result.h"

namespace tessera::tool {

// {min, median, max} of at least one value.
nlohmann::json quantiles(std::vector<double> values);

struct BenchCollectiveOptions {
  int ranks = 2, tiles = 4;
  int64_t megabytes = 16, repeats = 15;  // of one bucket
};
// The three reductions of one bucket over `tiles` tiles by `ranks` ranks (threads of this process), by shared memory and by
// TCP over the loopback: the defined sum, integers, and a plain float all-reduce over the same transport (function.reduction
// tree, fixed32, fast; buffers already merged within each rank). Seconds of a round are its slowest rank's; beside them what
// the same bytes cost as memcpy on as many threads (shared memory) or through the mesh's sockets without any sum (TCP).
// Error: kRebuildWorld.
Result<nlohmann::json> bench_collective(const BenchCollectiveOptions& options);

// AdamW, EMA and the state digest on one thread, beside memcpy.
Result<nlohmann::json> bench_update(const FunctionConfig& function, int64_t repeats);

// The operations of a block of each network one by one, and on a GPU the update, at the shapes of `bench step`.
// Errors: those of model::prepare_device.
Result<nlohmann::json> bench_kernels(const FunctionConfig& function, const std::string& device, int64_t repeats);

}  // namespace tessera::tool
