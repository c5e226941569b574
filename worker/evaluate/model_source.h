// MODEL on the command line: a checkpoint folder, a run (its newest checkpoint; also a run's name below runs/), a Hugging
// Face folder, or a published .pth.tar.
#pragma once

#include <string>

#include "worker/import/open_model.h"

namespace tessera::evaluate {

struct LoadedModel {
  std::string checkpoint;  // folder or file that was read
  std::string run_dir;     // when it belongs to a run, else empty
  FunctionConfig function;
  model::State state;
  import::ModelKind kind = import::ModelKind::kCheckpoint;
};

// num_heads: for a published file of sizes that no published variant has; else 0.
// Errors: kFixData naming what was expected and found (nothing there, no checkpoint yet, a missing or damaged tensor,
// a checkpoint without a target encoder).
Result<LoadedModel> load_model(const std::string& path, int64_t num_heads = 0);

// The same function with the weights of state[0]: the baseline `random_init`.
LoadedModel random_model(const LoadedModel& model);

}  // namespace tessera::evaluate
