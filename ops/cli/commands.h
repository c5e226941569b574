// The subcommands that main.cpp dispatches to. Each prints its result and returns the exit code of INTERFACES.md.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/cli/output.h"

namespace tessera::cli {

// run: see find_run (run_folder.h); empty is the newest.
enum class Watching {
  kOnce,
  kUntilTheEnd,  // again and again until the run ends or Ctrl-C
};
int status_command(const std::string& run, Watching watching, Format format);
int events_command(const std::string& run, Watching watching, Format format);
// role: only log lines of this role (coordinator, trainer, loader, worker); empty: all. count: the last so many lines.
int logs_command(const std::string& run, const std::string& role, int64_t count, Watching watching, Format format);
// token: for a run known by its URL only. Waits until the coordinator has ended, at most wait_seconds.
int stop_command(const std::string& run, const std::string& token, int64_t wait_seconds, Format format);

// Holds a run at its next step, with a checkpoint, its processes alive; or lets it go on. Waits until it does.
enum class Pause { kPause, kResume };
int pause_command(const std::string& run, const std::string& token, Pause pause, Format format);

int checkpoint_list_command(const std::string& run, Format format);
int checkpoint_verify_command(const std::string& run, Format format);
enum class DigestKind {
  kState,   // INTERFACES "state_digest"
  kSha256,  // canonical bytes, for the outside world
};
int checkpoint_digest_command(const std::string& path, DigestKind kind, Format format);
int checkpoint_now_command(const std::string& run, const std::string& token, Format format);

int config_check_command(const std::string& path, const std::vector<std::string>& overrides, Format format);
// samples, images_per_second: 0 when unknown; steps and wall time are left out then.
int config_explain_command(const std::string& path, const std::vector<std::string>& overrides, int64_t samples, double images_per_second, Format format);
int config_reference_command();
// A published YAML to ours, on stdout or into `out`.
int config_import_command(const std::string& path, const std::string& out, int64_t devices);

int doctor_command(Format format);
int version_command(Format format);

}  // namespace tessera::cli
