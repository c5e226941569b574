// A whole cluster under virtual time: the coordinator's real state machine, and model trainers, daemons and a loader that
// follow the trainer's rules (DESIGN section 4). One integer draws every delay and fault and replays a failure.
//
// Links are as TCP: in order, delayed; what is in flight to or from a process that dies is lost in part. Faults: trainer
// crash and hang, daemon crash, coordinator crash and restart (from what its store holds), loader crash.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <queue>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "coordinator/machine.h"

namespace tessera::sim {

// Bugs that a test plants to see the simulator find them.
enum class Bug {
  kNone,
  kApplyBeforeAllVotes,    // a trainer applies after its own vote
  kForgetGeneration,       // a trainer acts on WorldStart of an older generation
  kReuseTerm,              // a restarted coordinator takes the old term again
  kStaleGradient,          // a survivor rolls forward with a gradient that was overwritten
};

struct Options {
  uint64_t seed = 0;
  Step steps = 40;
  int workers = 3;
  double faults_per_second = 0.5;
  Millis heal_at_ms = 20000;     // no faults after it
  Millis deadline_ms = 240000;   // liveness: the run must have finished
  Bug bug = Bug::kNone;
  bool trace = false;
};

struct Outcome {
  bool ok = true;
  std::string violation;
  Step committed = 0;
  int64_t generations = 0, faults = 0, events = 0;
  Millis finished_at = 0;
  std::vector<std::string> trace;
};

Outcome simulate(const Options& options);

}  // namespace tessera::sim
