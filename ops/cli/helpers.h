// The programs beside `tessera`: tessera-data, tessera-model, tessera-sim and the daemons. Like git, the command runs them.
#pragma once

#include <string>
#include <vector>

#include "common/process.h"
#include "common/result.h"
#include "ops/cli/output.h"

namespace tessera::cli {

// Path of a program beside this one. Error: kUnavailable naming the folder and how to build it.
Result<std::string> helper_path(const std::string& name);

// Replaces this process. Returns only with an error.
Error exec_helper(const std::string& name, const std::vector<std::string>& arguments);

// Runs a helper, waits, and returns the last JSON object that it printed (an empty one when it printed none). A signal ends the helper and gives exit code 75.
// Errors: the helper's own sentence and exit code; kInternal when it ended without either.
Result<Json> run_helper(const std::string& name, const std::vector<std::string>& arguments, SignalWatch& signals);

// The last lines of a text file, each indented by two spaces; empty when there is none.
std::string last_lines(const std::string& path, size_t count);

}  // namespace tessera::cli
