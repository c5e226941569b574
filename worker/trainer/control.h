// The trainer's link to the coordinator: one thread that owns the socket, sends the heartbeat, keeps StepDone messages
// until they are acknowledged, and passes commands to the training thread.
//
// The abort signal is up exactly while a command waits that ends the world the training thread is in: a WorldStop, the
// WorldStart of a newer generation, or the end of the process. next() takes the command and lowers it.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "proto/channel.h"
#include "worker/collective/mesh.h"
#include "worker/trainer/session.h"

namespace tessera::trainer {

class ControlLink {
 public:
  struct Options {
    std::string coordinator;
    proto::TrainerHello hello;
  };
  static Result<std::unique_ptr<ControlLink>> start(Options options, collective::AbortSignal& abort);
  ~ControlLink();

  // Any thread. A StepDone is kept until acknowledged, everything else is sent once.
  void send(proto::Payload payload);
  // Keeps a step that another rank reports, in case that rank dies with its reports unsent.
  void keep(proto::StepDone done);
  // Every step up to this one is in the ledger: kept ones are let go.
  void acknowledge(Step step);
  Step acknowledged() const;
  // Sends everything kept: the coordinator stores what it lacks and compares the rest.
  void send_kept();
  // Updates the heartbeat; the phase's clock restarts when the phase or the step changes.
  void report(Generation generation, Rank rank, Step step, proto::Phase phase);
  void report_step_seconds(double seconds_p50, double seconds_max);
  // State a new hello carries.
  void set_position(Generation generation, Step applied);
  // Next command for the training thread; waits up to timeout_ms.
  std::optional<proto::Payload> next(int timeout_ms);
  // Called with each assignment, at once with the last one; on the control thread.
  void on_assignment(std::function<void(const proto::ShardAssignment&)> sink);
  // Called with each CheckpointPublished and WriteShare; on the control thread.
  void on_checkpoint(std::function<void(const proto::Payload&)> sink);
  // The directive for this world, when one came; several are joined into one.
  std::optional<proto::WorldDirective> take_directive();
  // Set when the coordinator refused us or told us to shut down.
  std::optional<proto::Shutdown> shutdown() const;
  // Waits until all is sent and every StepDone acknowledged. False: the deadline passed.
  bool drain(int timeout_ms);
  // Waits until the last message has been handed to the socket.
  bool flush(int timeout_ms);
  const proto::BuildInfo& build() const { return options_.hello.build; }

 private:
  ControlLink(Options options, collective::AbortSignal& abort, proto::Client client);
  void run(std::stop_token stop);
  void handle(proto::Payload payload);
  void send_hello();
  void heartbeat(Millis now);
  void send_outbox();
  void resend_late(Millis now);
  void set_acknowledged(Step step);
  void accept(proto::Payload payload);
  void refresh_abort();

  Options options_;
  collective::AbortSignal& abort_;
  proto::Client client_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<proto::Payload> outbox_, inbox_;
  std::deque<proto::StepDone> unacknowledged_;
  std::optional<proto::ShardAssignment> assignment_;
  std::function<void(const proto::ShardAssignment&)> assignment_sink_;
  std::function<void(const proto::Payload&)> checkpoint_sink_;
  Fence fence_;
  Generation members_of_;             // whose list of members is the last one known
  std::vector<proto::Member> members_;
  Step acknowledged_ = -1;
  Millis resent_at_ = 0;
  bool reporting_ = false;  // this rank's StepDones go to the coordinator, not only into the kept ones
  std::optional<proto::WorldDirective> directive_;
  std::optional<proto::Shutdown> shutdown_;
  proto::TrainerStatus status_;
  Millis phase_since_ = 0;
  bool welcomed_ = false;
  std::jthread thread_;
};

}  // namespace tessera::trainer
