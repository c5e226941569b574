// `tessera replay RUN --step K`: evaluates committed steps again from the nearest checkpoint and compares them with the
// ledger: the run's claim to be a function of its configuration, tried out on any step.
#pragma once

#include <string>

#include "common/ids.h"
#include "ops/cli/output.h"

namespace tessera::cli {

// step: the step to evaluate again. workers: 0 takes the configuration's. Prints the digests; 0 when all steps from the checkpoint
// to `step` agree, 65 when one differs. Errors: kUsage (no such run or step, no checkpoint at or before it).
int replay_command(const std::string& run, Step step, int64_t workers, Format format);

}  // namespace tessera::cli
