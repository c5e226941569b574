// What `tessera up` does when a run is there already (INTERFACES, below "Commands"). Pure.
#pragma once

#include <functional>
#include <string>

#include "common/ids.h"
#include "common/result.h"

namespace tessera::cli {

enum class StartMode {
  kUnspecified,  // no run yet: start; an unfinished one: refuse with both commands; a finished one: its summary
  kFresh,        // a new run, beside an existing one as <id>-2
  kResume,       // go on with the existing run
};

struct StartRequest {
  StartMode mode = StartMode::kUnspecified;
  std::string command;      // "tessera up configs/a.yaml --workers 2", for the printed commands
  std::string run_id;
  std::string run_dir;
  std::string function_id;  // of the configuration given
  Step goal = 0;            // the step at which this start would end
};

struct RunOnDisk {
  bool exists = false;
  std::string answers_at;   // its coordinator answers there: it is running now
  Step newest_checkpoint = -1;
  std::string function_id;  // of its config.yaml; empty when unknown
};

enum class StartAction {
  kStartNew,
  kResume,
  kShowSummary,  // it is done already
};
struct StartDecision {
  StartAction action = StartAction::kStartNew;
  std::string run_id;
  std::string run_dir;
};

// exists: whether a folder holds a run (for the name of a fresh one). Error: kUsage with the commands that would work.
Result<StartDecision> decide_start(const StartRequest& request, const RunOnDisk& on_disk, const std::function<bool(const std::string&)>& exists);

}  // namespace tessera::cli
