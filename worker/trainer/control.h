// The trainer's link to the coordinator: one thread that owns the socket, sends the heartbeat, keeps StepDone messages
// until they are acknowledged, and passes commands to the training thread. A WorldStop raises the abort signal at once.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "proto/channel.h"
#include "worker/collective/mesh.h"

namespace tessera::trainer {

class ControlLink {
 public:
  struct Options {
    std::string coordinator;
    proto::TrainerHello hello;
  };
  static Result<std::unique_ptr<ControlLink>> start(Options options, collective::AbortSignal& abort);
  ~ControlLink();

  // Any thread. StepDone is kept until acknowledged, everything else is sent once.
  void send(proto::Payload payload);
  // Updates the heartbeat; the phase's clock restarts when the phase or the step changes.
  void report(Generation generation, Rank rank, Step step, proto::Phase phase);
  void report_step_seconds(double seconds_p50);
  // State a new hello carries.
  void set_position(Generation generation, Step applied);
  // Next command for the training thread; waits up to timeout_ms.
  std::optional<proto::Payload> next(int timeout_ms);
  // The newest assignment, when it changed since the last call.
  std::optional<proto::ShardAssignment> take_assignment();
  // A directive for rank 0, when one came.
  std::optional<proto::WorldDirective> take_directive();
  // Set when the coordinator refused us or told us to shut down.
  std::optional<proto::Shutdown> shutdown() const;
  // True once every StepDone is acknowledged, or after the deadline.
  bool drain(int timeout_ms);
  const proto::BuildInfo& build() const { return options_.hello.build; }

 private:
  ControlLink(Options options, collective::AbortSignal& abort, proto::Client client);
  void run(std::stop_token stop);
  void handle(proto::Payload payload);
  void send_hello();
  void heartbeat(Millis now);

  Options options_;
  collective::AbortSignal& abort_;
  proto::Client client_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<proto::Payload> outbox_, inbox_;
  std::deque<proto::StepDone> unacknowledged_;
  std::optional<proto::ShardAssignment> assignment_;
  std::optional<proto::WorldDirective> directive_;
  std::optional<proto::Shutdown> shutdown_;
  proto::TrainerStatus status_;
  Millis phase_since_ = 0;
  bool welcomed_ = false;
  std::jthread thread_;
};

}  // namespace tessera::trainer
