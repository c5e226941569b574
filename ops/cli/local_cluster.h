// The processes of a run on this machine: one coordinator, loaders, one worker daemon; the same programs as on a cluster.
// Children die with this process. Owned by the main thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/process.h"
#include "common/result.h"

namespace tessera::cli {

struct ClusterOptions {
  std::string config_path;
  std::vector<std::string> overrides;  // --set of the coordinator
  std::string run_id;
  std::string run_dir;                 // logs go to run_dir/logs
  bool resume = false;
  std::string from;                    // checkpoint that a new run begins with; empty: none
  int64_t workers = 1;
  int64_t loaders = 1;
  int64_t loader_threads = 1;
  std::string device = "auto";
};

// How the cluster ended, once the coordinator has.
struct ClusterEnd {
  int exit_code = 0;
  std::string reason;  // empty, or a sentence with the last log lines of who ended unexpectedly
};

class LocalCluster {
 public:
  // Starts the coordinator, waits for its address, then starts loaders and the worker daemon. Errors: what the coordinator
  // said when it refused to start, with its exit code.
  static Result<std::unique_ptr<LocalCluster>> start(const ClusterOptions& options, SignalWatch& signals);
  ~LocalCluster();

  // Waits up to timeout_ms for a child's end or a signal. A child that died of a signal or an internal error is started
  // again (at most kRestarts times each; a coordinator takes up the run where the others are), which is said; one that
  // gave up for a reason that a restart does not mend ends the run.
  void wait(int timeout_ms);
  bool ended() const { return ended_; }
  const ClusterEnd& end() const { return end_; }
  // Sentences about children since the last call.
  std::vector<std::string> take_news();

  // The run is being stopped: a coordinator that dies now is not started again.
  void expect_end() { asked_to_stop_ = true; }
  // SIGTERM to the coordinator, for when its HTTP endpoint does not answer.
  void ask_to_stop();
  // Kills everything at once.
  void kill_all();

  static constexpr int kRestarts = 5;  // in a row: a life of kSteadyMs resets the count
  static constexpr Millis kSteadyMs = 3000;

 private:
  struct Member {
    std::string name;
    SpawnOptions options;
    Child child;
    int restarts = 0;
    Millis started_at = 0;
  };
  LocalCluster(SignalWatch& signals, std::string run_dir) : signals_(signals), run_dir_(std::move(run_dir)) {}
  Status add(std::string name, std::vector<std::string> command);
  Status wait_for_address();
  void member_ended(Member& member, const ChildExit& exit);
  bool restart(Member& member, const std::string& sentence);
  void coordinator_ended(const ChildExit& exit);

  SignalWatch& signals_;
  std::string run_dir_;
  bool asked_to_stop_ = false;
  std::vector<Member> members_;  // [0] is the coordinator
  std::vector<std::string> news_;
  bool ended_ = false;
  ClusterEnd end_;
  int doomed_code_ = 0;          // a member gave up for good: the coordinator gets time to say so itself
  Millis doomed_until_ = -1;
  std::string doomed_reason_;
};

}  // namespace tessera::cli
