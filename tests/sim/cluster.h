// A whole cluster under virtual time: the coordinator's real state machine, and model trainers, daemons and a loader that
// follow the trainer's rules (DESIGN section 4). One integer draws every delay and fault and replays a failure.
//
// Links are as TCP: in order, delayed; what is in flight to or from a process that dies is lost in part. The faults are data
// (Fault): drawn from the seed, or given, which is how shrink() finds the few that a failure needs.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <queue>
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
  kAnswerBeforeStore,      // the coordinator acknowledges steps before they are durable
  kReportBeforeWrite,      // a trainer reports its share of a checkpoint before it is on disk
};

enum class FaultKind {
  kCrash,                   // of a trainer
  kHang,                    // a trainer stands still for ever
  kPause,                   // it stands still for a while, then goes on: a zombie, if its world is gone by then
  kSlow,                    // everything takes it eight times as long
  kDaemon,                  // a node daemon dies, its trainer with it
  kLoader,
  kCoordinator,             // dies between two events
  kCoordinatorAmidEffects,  // dies in the middle of carrying out a decision
  kClock,                   // the coordinator's clock jumps ahead: its host was suspended
  kCutToCoordinator,        // one way: what a node sends does not arrive
  kCutFromCoordinator,      // the other way
  kLossy,                   // messages between a node and the coordinator are lost, doubled, out of order
  kMesh,                    // a node does not reach its peers
  kDiskFull,
};
inline constexpr int kFaultKinds = 14;
struct Fault {
  Millis at = 0;
  FaultKind kind = FaultKind::kCrash;
  int target = 0;      // which node
  Millis length = 0;   // of those that last
};
std::string describe(const Fault& fault);  // "pause at 1200 ms for 800 ms"

struct Options {
  uint64_t seed = 0;
  Step steps = 40;
  int workers = 3;
  double faults_per_second = 0.5;
  Millis heal_at_ms = 20000;     // no faults after it
  Millis deadline_ms = 240000;   // liveness: the run must have finished
  Bug bug = Bug::kNone;
  bool trace = false;
  std::optional<std::vector<Fault>> faults;  // instead of drawn ones
};
std::vector<Fault> draw_faults(const Options& options);

struct Outcome {
  bool ok = true;
  std::string violation;
  Step committed = 0;
  int64_t generations = 0, faults = 0, events = 0;
  Millis finished_at = 0;
  std::vector<std::string> trace;
};

Outcome simulate(const Options& options);

// Of a simulation that fails: the smallest list of faults found with which it still does (delta debugging).
std::vector<Fault> shrink(const Options& options);

}  // namespace tessera::sim
