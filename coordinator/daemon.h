// The coordinator around its state machine: one loop thread that owns sockets, store and state.
#pragma once

#include <memory>
#include <string>

#include "common/config.h"
#include "common/process.h"

namespace tessera::coordinator {

enum class StartMode {
  kAuto,    // no run yet: start; an unfinished one: refuse with both commands; a finished one: say so
  kFresh,   // start anew; the folder must not hold a run
  kResume,  // go on with the unfinished run of the folder
};

// Runs until the run ends or is stopped. Returns the exit code; errors before the run starts are returned as such.
// root: a checkpoint folder whose state a new run begins with, at the checkpoint's step; empty: the initial state at 0.
Result<int> run_coordinator(Config config, StartMode mode, const std::string& root, SignalWatch& signals);

// Bytes of one checkpoint of this model: 4 fp32 roles of context encoder and predictor, and the target.
int64_t checkpoint_bytes(const FunctionConfig& function);

}  // namespace tessera::coordinator
