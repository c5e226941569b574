// The node daemon's loop: messages, signals and trainers' ends in, reports out. It never waits for a trainer, so that
// heartbeats and a second signal are served while the node drains.
//
// Leaving on a signal is planned: Goodbye goes to the coordinator first, which lets the world stop at a boundary and sends the
// trainers home; SIGTERM to those that are still there after DaemonOptions::boundary_ms (at once when no coordinator
// has welcomed us). On the coordinator's Shutdown, which reaches the trainers too, SIGTERM comes a few seconds later. Always:
// no more starts; SIGKILL at a deadline or on the second signal; Goodbye when all have ended.
// Losing the coordinator ends nothing: the channel reconnects, reports wait.
#pragma once

#include <deque>
#include <optional>
#include <string>

#include "common/process.h"
#include "proto/channel.h"
#include "worker/daemon/supervisor.h"

namespace tessera::worker {

class Daemon {
 public:
  // client: connected to the coordinator; signals outlives the daemon.
  Daemon(DaemonOptions options, proto::Client client, SignalWatch& signals);
  ~Daemon();
  // Until the node leaves; returns the exit code: 75 after a signal, what the coordinator said after Shutdown or Refused,
  // 78 when its configuration cannot be read.
  int run();

 private:
  struct Leaving {
    std::string reason;
    int code = 0;
    Millis term_at = 0, kill_at = 0;
    bool termed = false;
  };
  void hello();
  void watch(int descriptor);
  void report(Reports reports);
  void beat(Millis now);
  void on_signals(Millis now);
  void leave(const std::string& reason, int code, Millis term_ms, Millis kill_ms);
  // True when all trainers have ended.
  bool left(Millis now);
  void handle(const proto::Payload& payload);
  void on_welcome(const proto::DaemonWelcome& welcome);

  Millis boundary_ms_;
  Supervisor supervisor_;
  proto::Client client_;
  SignalWatch& signals_;
  int epoll_;
  int signals_seen_ = 0;
  bool welcomed_ = false;
  Millis next_heartbeat_ = 0, next_hello_ = 0;
  std::deque<proto::Payload> unsent_;  // reports that the channel did not take
  std::optional<Leaving> leaving_;
};

}  // namespace tessera::worker
