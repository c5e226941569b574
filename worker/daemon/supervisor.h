// The node daemon's logic: one trainer per device slot, started, watched, fenced and restarted. It is the witness of how
// a trainer ended. Main thread only (the parent-death signal belongs to the thread that spawns).
#pragma once

#include <map>
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
};

// What a trainer's exit asks of the daemon.
enum class Restart {
  kAgain,  // died, or asks to be started again: after a backoff
  kNever,  // would end the same way, or ended on purpose
};
Restart restart_policy(const ChildExit& exit);

// Backoff before the n-th start in a row (0: at once): 100 ms doubling to 5 s; a life of 30 s resets the count.
Millis restart_delay_ms(int failures);

class Supervisor {
 public:
  explicit Supervisor(DaemonOptions options);
  std::vector<proto::DeviceSlot> slots() const;
  // Begins to start trainers; the operation part decides threads and logging.
  void set_operation(const OperationConfig& operation) { operation_ = operation; started_ = true; }
  bool started() const { return started_; }
  // Starts what is due; reports what ended since the last call.
  std::vector<proto::TrainerExited> tick(Millis now);
  // Kills the slot's trainer and waits for its death. Returns true when it was running.
  bool fence(const WorkerId& worker_id);
  // Descriptors that become readable when a trainer ends.
  std::vector<int> descriptors() const;
  std::vector<WorkerId> running() const;
  // No more starts; SIGTERM to all now, SIGKILL after grace.
  void stop(Millis grace_ms);

 private:
  struct Slot {
    proto::DeviceSlot slot;
    Child child;
    int failures = 0;
    Millis started_at = 0, next_start = 0;
    bool retired = false;
  };
  void start(Slot& slot, Millis now);

  DaemonOptions options_;
  OperationConfig operation_;
  std::vector<Slot> slots_;
  std::vector<proto::TrainerExited> pending_;
  bool started_ = false;
};

}  // namespace tessera::worker
