// `tessera config explain`: what a configuration costs, in numbers, before anything runs.
#pragma once

#include "common/config.h"
#include "ops/cli/output.h"

namespace tessera::cli {

// Fields: parameters, masks, flops_per_image, memory_bytes, and, when samples > 0 or function.steps is set, steps and images; with
// images_per_second > 0 the wall time. Error: kFixConfig when samples are fewer than a step.
Result<Json> explain(const Config& config, int64_t samples, double images_per_second);
std::string explain_text(const Json& facts);

}  // namespace tessera::cli
