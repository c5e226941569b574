// MODEL on the command line: a checkpoint folder, or a run (its newest good checkpoint).
#pragma once

#include <string>

#include "worker/checkpoint/checkpoint.h"
#include "worker/model/state.h"

namespace tessera::evaluate {

struct LoadedModel {
  std::string checkpoint;  // folder
  std::string run_dir;     // when it belongs to a run, else empty
  FunctionConfig function;
  model::State state;
};

// Errors: kFixData naming what was expected and found.
Result<LoadedModel> load_model(const std::string& path);

}  // namespace tessera::evaluate
