// Parts of the machine, internal to coordinator/*.cpp. Each takes what step() takes and appends effects.
#pragma once

#include "coordinator/machine.h"

namespace tessera::coordinator {

struct Context {
  State& state;
  const MachineConfig& config;
  Millis now;
  Effects& effects;

  void send(const std::string& peer, proto::Payload payload) { effects.push_back(Send{peer, std::move(payload)}); }
  void log(const char* severity, std::string text) { effects.push_back(LogEvent{severity, std::move(text)}); }
  void set_run_state(RunState run_state, std::string reason);
  void alert(const char* severity, const std::string& reason);
};

// membership.cpp
void on_daemon_hello(Context& c, const MessageEvent& e, const proto::DaemonHello& hello);
void on_trainer_hello(Context& c, const MessageEvent& e, const proto::TrainerHello& hello);
void on_trainer_exited(Context& c, const proto::TrainerExited& exited);
void on_fenced(Context& c, const proto::TrainerFenced& fenced);
void on_goodbye(Context& c, const MessageEvent& e, const proto::Goodbye& goodbye);
void on_loader_hello(Context& c, const MessageEvent& e, const proto::LoaderHello& hello);
void on_loader_dataset(Context& c, const MessageEvent& e, const proto::LoaderDataset& dataset);
void welcome_trainers(Context& c);
void assign_shards(Context& c);
void check_silence(Context& c);
Worker* worker_of_peer(Context& c, const std::string& peer);
// Its node daemon kills the process and confirms; nothing happens where no daemon of the node is known.
void fence(Context& c, const WorkerId& id, uint64_t incarnation, const std::string& reason);
void refuse(Context& c, const std::string& peer, const std::string& reason, int exit_code);

// world.cpp
bool is_member(const World& world, const WorkerId& id);
void stop_world(Context& c, const std::string& reason);
void lose_member(Context& c, Worker& worker, WorkerState state, const std::string& reason);
void on_world_started(Context& c, const WorkerId& id, const proto::WorldStarted& started);
void on_world_fault(Context& c, const WorkerId& id, const proto::WorldFault& fault);
void on_sealed(Context& c, const WorkerId& id, const proto::Sealed& sealed);
void drive_world(Context& c);

// ledger.cpp
void on_step_done(Context& c, const MessageEvent& e, const proto::StepDone& done);
// The ledger lacks a step and those who knew it are gone: the next world begins with a checkpoint.
void rewind(Context& c);
void on_checkpoint_file(Context& c, const proto::CheckpointFile& file);
void publish_whole(Context& c);
void on_checkpoint_failed(Context& c, const proto::CheckpointFailed& failed);
void on_publish_done(Context& c, const PublishDone& done);
void finish(Context& c, RunState state, int exit_code, const std::string& reason);
// Shares of a dead rank are asked of the one that holds a copy.
void repair_attempts(Context& c);
// Ends the run when the boundary it was to stop at is reached and its checkpoint is published.
void finish_if_done(Context& c);

}  // namespace tessera::coordinator
