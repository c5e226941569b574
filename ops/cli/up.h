// `tessera up`: a whole run on this machine, watched until it ends.
#pragma once

#include <string>
#include <vector>

#include "ops/cli/output.h"
#include "ops/cli/start_rule.h"

namespace tessera::cli {

struct UpOptions {
  std::string config_path;
  std::vector<std::string> overrides;  // --set
  int64_t workers = 0;                 // 0: the configuration's
  int64_t loaders = 0;
  int64_t steps = 0;                   // 0: none; else operation.stop_at_step
  std::string from;                    // checkpoint that a new run begins with; empty: none
  StartMode mode = StartMode::kUnspecified;
  Format format = Format::kText;
  std::string command;                 // as typed, without --fresh and --resume, for printed commands
  std::string onward;                  // that without --steps: what goes on beyond it
};

// Returns the exit code of INTERFACES.md. First SIGINT or SIGTERM: the run finishes its step, writes a checkpoint, 75; the second
// stops everything now.
int up_command(const UpOptions& options);

}  // namespace tessera::cli
