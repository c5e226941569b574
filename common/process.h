// Child processes and signals, for the daemon, `tessera up` and tests. Linux.
#pragma once

#include <csignal>
#include <map>
#include <string>
#include <sys/types.h>
#include <vector>

#include "common/ids.h"
#include "common/result.h"

namespace tessera {

// GOMP_SPINCOUNT of a program that computes with threads: they wait for each other spinning for a few microseconds, then
// asleep. LibTorch's default, milliseconds, keeps the cores from those that are waited for as soon as anything else runs.
constexpr const char* kOpenMpSpins = "2000";

struct SpawnOptions {
  std::vector<std::string> command;             // [0] is a path
  std::map<std::string, std::string> set_env;   // added or replaced
  std::vector<std::string> clear_env_prefixes;  // inherited variables that start so are removed
  std::string output_file;                      // stdout and stderr are appended to it; empty: inherited
  bool pipe_input = false;                      // the child reads what say() sends; otherwise its input is empty
  bool die_with_parent = true;                  // SIGKILL when the spawning thread dies; spawn from the main thread
  bool own_session = false;                     // own process group: a terminal's Ctrl-C does not reach it
};

struct ChildExit {
  int exit_code = -1;  // -1: killed by a signal
  int signal = 0;
  std::string cause;   // "exit code 74 (I/O error)", "killed by SIGKILL (out of memory)"
};

// Somebody's kill -9: no failure of the process. The kernel's, for memory, is one and comes again.
bool killed_from_outside(int signal, const std::string& cause);

// A started process; killed and reaped when the object goes. Move only.
class Child {
 public:
  // Error: kInternal naming program and cause (not found, no permission).
  static Result<Child> spawn(const SpawnOptions& options);
  Child() = default;
  ~Child();
  Child(Child&& other) noexcept;
  Child& operator=(Child&& other) noexcept;

  pid_t pid() const { return pid_; }
  // Readable once the process has ended; for poll(). -1 when there is none.
  int descriptor() const { return pidfd_; }
  bool running() const { return pid_ > 0; }
  void send(int signal) const;
  // Writes to the child's standard input (pipe_input). False: it does not read any more.
  bool say(const std::string& text) const;
  // Ends its input.
  void close_input();
  // Whether a signal has stopped it (SIGSTOP, SIGTSTP); a debugger's stops do not count.
  bool stopped() const;
  // How it ended, if it has; does not wait.
  bool poll_exit(ChildExit* exit);
  // SIGTERM, then SIGKILL after grace_ms; waits for the end.
  ChildExit stop(Millis grace_ms);

 private:
  pid_t pid_ = -1;
  int pidfd_ = -1;
  int input_ = -1;
  int64_t oom_kills_before_ = 0;
};

// "exit code 75 (drained after a checkpoint)" ...
std::string describe_exit(int exit_code);

// SIGTERM and SIGINT as something to poll: construct in main before any thread; the signals are blocked in all threads.
class SignalWatch {
 public:
  SignalWatch();
  ~SignalWatch();
  int descriptor() const { return fd_; }
  // Signals since the last call: how many SIGINT or SIGTERM arrived in all so far.
  int count();
  int last() const { return last_; }

 private:
  int fd_ = -1;
  int count_ = 0;
  int last_ = 0;
};

}  // namespace tessera
