// `tessera chaos`: a run under drawn faults on real processes, then the same run undisturbed, and what the difference cost.
#pragma once

#include <string>
#include <vector>

#include "ops/cli/output.h"

namespace tessera::cli {

struct ChaosOptions {
  std::string config_path;
  std::vector<std::string> overrides;  // --set
  double kill_every_s = 15;            // between faults
  double for_s = 120;                  // of the disturbed run
  uint64_t seed = 0;                   // of who is hit and how
  std::vector<std::string> targets;    // of trainer, hang, loader, daemon, coordinator; empty: all
  Format format = Format::kText;
};

struct Fault {
  double time = 0;     // Unix
  std::string target;  // trainer, hang (SIGSTOP of a trainer), loader, daemon, coordinator
  int64_t pid = 0;
};

struct ChaosReport {
  std::vector<double> recovery_seconds;  // fault of trainer, hang or daemon -> first step committed by a later generation
  std::vector<double> stall_seconds;     // fault of loader or coordinator -> longest wait between steps in the 5 s after it
  std::vector<double> coordinator_gaps;  // every time between two steps in the 5 s after a fault of the coordinator
  double goodput = 0;                    // committed steps x undisturbed median step / wall time
  int64_t steps_lost = 0;                // committed, and evaluated again after a fault
};
// Pure. rows: metrics.jsonl of the disturbed run; events: its events.jsonl; step_seconds: the undisturbed run's median.
ChaosReport judge(const std::vector<Fault>& faults, const std::vector<Json>& rows, const std::vector<Json>& events, double step_seconds);

// Times between consecutive steps, as their trainers ended them.
std::vector<double> step_gaps(const std::vector<Json>& rows);
// Median time between the commits of consecutive steps; 0 for fewer than two.
double median_step_seconds(const std::vector<Json>& rows);

// 0 when the final states are equal and the ledger is whole; 65 when not.
int chaos_command(const ChaosOptions& options);

}  // namespace tessera::cli
