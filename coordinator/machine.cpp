#include "coordinator/machine.h"

#include <nlohmann/json.hpp>

#include "coordinator/machine_parts.h"

namespace tessera::coordinator {
namespace {

void on_ready(Context& c, Worker& worker) {
  if (worker.ready || worker.state == WorkerState::kLost || worker.state == WorkerState::kFenced) return;
  worker.ready = true;
  if (!is_member(c.state.world, worker.id)) worker.state = WorkerState::kReady, worker.reason = "warmed up, waits for a world";
}

// The coordinator itself stood still (a suspended host, a full disk): what the others said meanwhile has not been read yet.
void forgive_stall(Context& c) {
  const Millis gap = c.state.last_tick > 0 ? c.now - c.state.last_tick : 0;
  c.state.last_tick = c.now;
  if (gap < c.config.stall_ms) return;
  c.log("warning", "the coordinator stood still for " + std::to_string(gap) + " ms");
  for (auto& [id, worker] : c.state.workers) worker.last_heard += gap;
  for (auto& [name, daemon] : c.state.daemons) daemon.last_heard += gap;
  for (auto& [name, loader] : c.state.loaders) loader.last_heard += gap;
  c.state.world.since += gap;
}

// A heartbeat also says again what its sender said once: the message may have gone down with a connection.
void on_status(Context& c, Worker& worker, const proto::TrainerStatus& status) {
  worker.step = status.step;
  worker.phase = status.phase;
  worker.generation = status.generation;
  worker.phase_seconds = status.phase_seconds;
  worker.step_seconds_p50 = status.step_seconds_p50, worker.step_seconds_max = status.step_seconds_max;
  worker.memory_bytes = status.memory_bytes;
  if (worker.state == WorkerState::kSuspect) {
    worker.state = is_member(c.state.world, worker.id) ? WorkerState::kRunning : worker.ready ? WorkerState::kReady : WorkerState::kJoining;
    worker.reason = "heard again";
  }
  if (status.phase == proto::Phase::kReady || status.phase == proto::Phase::kSealed || status.phase == proto::Phase::kFinished) on_ready(c, worker);
  if (status.generation == c.state.world.generation && status.phase >= proto::Phase::kData) on_world_started(c, worker.id, {status.generation, status.step, {}});
}

void on_trainer_message(Context& c, const MessageEvent& e, Worker& worker) {
  const WorkerId id = worker.id;
  if (const auto* status = std::get_if<proto::TrainerStatus>(&e.payload)) {
    on_status(c, worker, *status);
  } else if (std::holds_alternative<proto::TrainerReady>(e.payload)) {
    on_ready(c, worker);
  } else if (const auto* started = std::get_if<proto::WorldStarted>(&e.payload)) {
    on_world_started(c, id, *started);
  } else if (const auto* fault = std::get_if<proto::WorldFault>(&e.payload)) {
    on_world_fault(c, id, *fault);
  } else if (const auto* sealed = std::get_if<proto::Sealed>(&e.payload)) {
    on_sealed(c, id, *sealed);
  } else if (const auto* file = std::get_if<proto::CheckpointFile>(&e.payload)) {
    on_checkpoint_file(c, *file);
  } else if (const auto* failed = std::get_if<proto::CheckpointFailed>(&e.payload)) {
    on_checkpoint_failed(c, *failed);
  }
}

void on_loader_message(Context& c, const MessageEvent& e, Loader& loader) {
  if (const auto* status = std::get_if<proto::LoaderStatus>(&e.payload)) {
    if (status->bad_samples > loader.status.bad_samples)
      c.log("warning", "loader " + e.sender + ": " + std::to_string(status->bad_samples) + " undecodable samples so far, the last: " + status->last_bad);
    loader.status = *status;
    if (status->bad_samples > c.config.operation.data_bad_budget)
      finish(c, RunState::kFailed, exit_codes::kDataCorrupt,
             std::to_string(status->bad_samples) + " undecodable samples exceed operation.data_bad_budget " + std::to_string(c.config.operation.data_bad_budget));
  }
}

void on_message(Context& c, const MessageEvent& e) {
  if (const auto* hello = std::get_if<proto::DaemonHello>(&e.payload)) return on_daemon_hello(c, e, *hello);
  if (const auto* hello = std::get_if<proto::TrainerHello>(&e.payload)) return on_trainer_hello(c, e, *hello);
  if (const auto* hello = std::get_if<proto::LoaderHello>(&e.payload)) return on_loader_hello(c, e, *hello);
  if (const auto* done = std::get_if<proto::StepDone>(&e.payload)) {  // facts are never fenced
    if (Worker* worker = worker_of_peer(c, e.peer)) worker->last_heard = c.now;
    return on_step_done(c, e, *done);
  }
  if (Worker* worker = worker_of_peer(c, e.peer)) {
    worker->last_heard = c.now;
    if (const auto* goodbye = std::get_if<proto::Goodbye>(&e.payload)) return on_goodbye(c, e, *goodbye);
    return on_trainer_message(c, e, *worker);
  }
  for (auto& [name, daemon] : c.state.daemons) {
    if (daemon.peer != e.peer) continue;
    daemon.last_heard = c.now;
    if (const auto* exited = std::get_if<proto::TrainerExited>(&e.payload)) on_trainer_exited(c, *exited);
    if (const auto* fenced = std::get_if<proto::TrainerFenced>(&e.payload)) on_fenced(c, *fenced);
    if (const auto* goodbye = std::get_if<proto::Goodbye>(&e.payload)) on_goodbye(c, e, *goodbye);
    return;
  }
  for (auto& [name, loader] : c.state.loaders) {
    if (loader.peer != e.peer) continue;
    loader.last_heard = c.now;
    if (const auto* dataset = std::get_if<proto::LoaderDataset>(&e.payload)) return on_loader_dataset(c, e, *dataset);
    if (const auto* goodbye = std::get_if<proto::Goodbye>(&e.payload)) return on_goodbye(c, e, *goodbye);
    return on_loader_message(c, e, loader);
  }
  c.send(e.peer, proto::Reintroduce{});  // it knows an earlier coordinator
}

}  // namespace

void Context::set_run_state(RunState run_state, std::string reason) {
  if (state.finished) return;
  if (state.run_state != run_state || state.reason != reason) log("info", std::string(run_state_name(run_state)) + ": " + reason);
  state.run_state = run_state;
  state.reason = std::move(reason);
}

void Context::alert(const char* severity, const std::string& reason) {
  log(severity, reason);
  state.alerts.push_back({severity, reason, now});
  if (state.alerts.size() > 50) state.alerts.erase(state.alerts.begin());
}

const char* run_state_name(RunState state) {
  static const char* names[] = {"PENDING", "STARTING", "RUNNING", "RECOVERING", "PAUSED", "DRAINING", "SUCCEEDED", "FAILED", "CANCELLED"};
  return names[int(state)];
}
const char* worker_state_name(WorkerState state) {
  static const char* names[] = {"JOINING", "READY", "RUNNING", "SUSPECT", "LOST", "DRAINING", "GONE", "FENCED"};
  return names[int(state)];
}

Step final_step(const State& state, const MachineConfig& config) {
  const Step stop = config.operation.stop_at_step;
  return stop > 0 ? std::min<Step>(stop, state.length.total_steps) : state.length.total_steps;
}

std::string placement_caveat(const FunctionConfig& function) {
  if (function.reduction != "fast") return "";
  return "function.reduction fast: all workers hold the same bits, but another number of workers gives others, and so may a step that is evaluated again; tree and fixed32 do not";
}

namespace {

bool heartbeat(const Event& event) {
  const auto* message = std::get_if<MessageEvent>(&event);
  return message && (std::holds_alternative<proto::TrainerStatus>(message->payload) || std::holds_alternative<proto::DaemonStatus>(message->payload) || std::holds_alternative<proto::LoaderStatus>(message->payload));
}

}  // namespace

Effects step(State& state, const MachineConfig& config, const Event& event, Millis now) {
  Effects effects;
  Context c{state, config, now, effects};
  if (state.finished) return effects;
  if (const auto* message = std::get_if<MessageEvent>(&event)) {
    on_message(c, *message);
  } else if (const auto* stop = std::get_if<StopCommand>(&event)) {
    if (!state.stop_asked) c.log("info", "stop asked: " + stop->reason);
    state.stop_asked = true;
    state.stop_reason = stop->reason;
  } else if (std::holds_alternative<CheckpointCommand>(event)) {
    if (state.world.phase == WorldPhase::kRunning) {
      for (const auto& member : state.world.members)
        if (member.rank == 0) c.send(state.workers[member.worker_id].peer, proto::WorldDirective{state.world.generation, -1, true, "operator asked for a checkpoint"});
    }
  } else if (const auto* pause = std::get_if<PauseCommand>(&event)) {
    if (state.pause_asked != pause->pause) c.log("info", pause->pause ? "pause asked" : "resume asked");
    state.pause_asked = pause->pause;
    c.effects.push_back(StoreMeta{"paused", pause->pause ? "1" : "0"});
  } else if (const auto* note = std::get_if<NoteCommand>(&event)) {
    if (note->severity == "warning") c.alert("warning", note->text);
    else c.log("info", note->text);
  } else if (const auto* published = std::get_if<PublishDone>(&event)) {
    on_publish_done(c, *published);
  } else {
    forgive_stall(c);
    check_silence(c);
  }
  if (heartbeat(event)) return effects;  // a tick comes soon, and with a thousand workers heartbeats are most of what comes
  if (!state.finished) drive_world(c);
  if (!state.finished) repair_attempts(c);
  return effects;
}

std::string print_world(const World& world) {
  nlohmann::json doc{{"term", world.generation.term}, {"number", world.generation.number}, {"start_step", world.start_step}, {"members", nlohmann::json::array()}};
  for (const auto& m : world.members)
    doc["members"].push_back({{"worker_id", m.worker_id}, {"incarnation", m.incarnation}, {"rank", m.rank}, {"mesh_address", m.mesh_address}});
  return doc.dump();
}

Result<World> parse_world(const std::string& text) {
  const auto doc = nlohmann::json::parse(text, nullptr, false);
  World world;
  try {
    world.generation = {doc.at("term").get<uint64_t>(), doc.at("number").get<uint64_t>()};
    world.start_step = doc.at("start_step").get<Step>();
    for (const auto& m : doc.at("members"))
      world.members.push_back({m.at("worker_id").get<std::string>(), m.at("incarnation").get<uint64_t>(), m.at("rank").get<Rank>(), m.at("mesh_address").get<std::string>()});
  } catch (const nlohmann::json::exception& e) {
    return fail(ErrorCode::kFixData, std::string("[store] the world that the store remembers is damaged: ") + e.what());
  }
  for (const auto& m : world.members) world.ranks[m.worker_id] = m.rank;
  world.phase = WorldPhase::kRunning;
  return world;
}

void adopt_world(State& state, World world, Millis now) {
  for (const auto& m : world.members) {
    Worker& worker = state.workers[m.worker_id];
    worker.id = m.worker_id, worker.incarnation = m.incarnation, worker.mesh_address = m.mesh_address;
    worker.state = WorkerState::kSuspect, worker.reason = "was a member before the coordinator restarted; not heard yet";
    worker.rank = m.rank, worker.last_heard = now;
  }
  state.world = std::move(world);
  state.world.since = now;
}

}  // namespace tessera::coordinator
