// The node daemon's logic: one trainer per device slot, started, watched, fenced and restarted. It is the witness of how
// a trainer ended. Never waits. Main thread only (the parent-death signal belongs to the thread that spawns).
#pragma once

#include <string>
#include <vector>

#include "common/config.h"
#include "common/process.h"
#include "proto/messages.h"

namespace tessera::worker {

struct DaemonOptions {
  std::string name;         // of this node in worker ids: "node-a"
  std::string coordinator;  // HOST:PORT
  std::string advertise;    // address that other hosts reach this one by
  std::string log_dir;
  std::string trainer;      // path of tessera-trainer
  std::vector<std::string> devices;  // one slot each
  Millis boundary_ms = 60000;        // after a signal: how long trainers may take to leave at a boundary before SIGTERM
};

// What a trainer's exit asks of the daemon.
enum class Restart {
  kAgain,  // died, or asks to be started again: after a backoff
  kNever,  // would end the same way, or ended on purpose
};
Restart restart_policy(const ChildExit& exit);

// Backoff before a start after the n-th failure in a row, n >= 1: 100 ms doubling to 5 s; a life of 30 s resets the count.
Millis restart_delay_ms(int failures);

// What happened since the last tick: each trainer that ended is in one of the two.
struct Reports {
  std::vector<proto::TrainerExited> exited;
  std::vector<proto::TrainerFenced> fenced;  // confirmed dead, by pidfd
};

class Supervisor {
 public:
  explicit Supervisor(DaemonOptions options);
  std::vector<proto::DeviceSlot> slots() const;
  // Begins to start trainers; the operation part decides threads and the number of standbys, which prepare for `function_yaml`.
  void set_operation(const OperationConfig& operation, const std::string& function_yaml) { operation_ = operation, function_yaml_ = function_yaml, started_ = true; }
  bool started() const { return started_; }
  // Starts what is due; kills what a signal has stopped for a while; reports what ended. A standby takes a dead trainer's place at once.
  Reports tick(Millis now);
  // Kills that trainer; a later tick confirms its death and starts a new one. An incarnation that does not run here (any
  // more) is confirmed by the next tick and nothing is killed; 0 means whichever runs.
  void fence(const WorkerId& worker_id, uint64_t incarnation);
  // No more starts.
  void retire();
  void signal_all(int signal) const;
  // Descriptors that become readable when a trainer ends.
  std::vector<int> descriptors() const;
  std::vector<WorkerId> running() const;

 private:
  struct Slot {
    proto::DeviceSlot slot;
    Child child;
    uint64_t incarnation = 0;  // given to the trainer, so that the coordinator and this daemon mean the same process
    int failures = 0;
    Millis started_at = 0, next_start = 0;
    bool retired = false;
    bool fencing = false;
    Millis stopped_since = -1;
    bool stopped = false;  // killed because it was
  };
  void start(Slot& slot, Millis now);
  bool put_standby(Slot& slot, Millis now);
  void tend_standbys(Millis now);
  void watch_stopped(Slot& slot, Millis now);
  std::string program_for(const std::string& device) const;
  SpawnOptions spawn_options(const std::string& program, std::vector<std::string> identity) const;
  void on_exit(Slot& slot, const ChildExit& exit, Millis now);

  DaemonOptions options_;
  OperationConfig operation_;
  std::vector<Slot> slots_;
  Reports reports_;
  bool started_ = false;
  std::string function_yaml_;
  std::vector<Child> standbys_;
  Millis next_standby_ = -1;
  int standby_failures_ = 0;
};

}  // namespace tessera::worker
