// Runs on disk: which folder a word of the command line means, and what lies in it (INTERFACES "Files and folders").
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/config.h"
#include "common/ids.h"
#include "common/result.h"
#include "ops/cli/output.h"

namespace tessera::cli {

// address.json of a run.
struct RunAddress {
  std::string control;  // host:port
  std::string http;     // http://host:port
  std::string token;
  std::string run_id;
  int64_t pid = 0;
};
// Errors: kUnavailable (there is none: the run was never started), kFixData (not readable as such).
Result<RunAddress> read_address(const std::string& run_dir);

// A run as the command line means it.
struct RunReference {
  std::string run_dir;  // empty when only a URL is known
  std::string url;      // http://host:port, empty when no coordinator ever wrote an address
  std::string token;
};
// argument: a run id below runs/, a folder, an address.json, or http://HOST:PORT. Empty: TESSERA_COORDINATOR, else the newest run
// below runs/. Errors: kUsage naming what was looked for and the runs that exist.
Result<RunReference> find_run(const std::string& argument, const std::string& runs_folder = "runs");

// Whether the folder holds a run (a coordinator opened it).
bool holds_run(const std::string& run_dir);

// Whether a process of this host with this id exists.
bool process_exists(int64_t pid);

// status.json, which a coordinator writes when it ends; nullopt when there is none that can be read.
std::optional<Json> read_last_status(const std::string& run_dir);

// Every line of a .jsonl file that parses; a last line cut off by a crash is left out. Empty when there is no file.
std::vector<Json> read_json_lines(const std::string& path);

}  // namespace tessera::cli
