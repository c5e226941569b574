#include <algorithm>

#include "common/process.h"
#include "common/version.h"
#include "coordinator/machine_parts.h"

namespace tessera::coordinator {
namespace {

constexpr Millis kAssignmentEveryMs = 5000;
constexpr int kSameFailures = 3;

bool version_fits(Context& c, const std::string& peer, const std::string& who, const proto::BuildInfo& build) {
  if (build.version == kVersion && build.protocol == kProtocolVersion) return true;
  refuse(c, peer, who + " is Tessera " + build.version + " (protocol " + std::to_string(build.protocol) + "), this coordinator " + kVersion + " (protocol " +
                      std::to_string(kProtocolVersion) + "); install the same version on every host", exit_codes::kVersionMismatch);
  return false;
}

std::string seconds(Millis ms) {
  return std::to_string(ms / 1000) + "." + std::to_string(ms % 1000 / 100) + " s";
}

void welcome(Context& c, Worker& worker) {
  if (!c.state.dataset || worker.welcomed) return;
  worker.welcomed = true;
  worker.welcomed_at = c.now;
  proto::TrainerWelcome w;
  w.run_id = c.config.run_id;
  w.run_dir = c.config.run_dir;
  w.lineage = c.config.lineage;
  w.function_yaml = print_function(c.config.function);
  w.operation_yaml = print_operation(c.config.operation);
  w.checkpoint_root = c.config.checkpoint_root;
  w.sample_count = c.state.dataset->sample_count;
  w.steps_per_epoch = c.state.length.steps_per_epoch;
  w.total_steps = c.state.length.total_steps;
  w.warmup_steps = c.state.length.warmup_steps;
  c.send(worker.peer, w);
}

std::string daemon_of(const State& state, const WorkerId& id) {
  for (const auto& [name, daemon] : state.daemons)
    for (const auto& slot : daemon.slots)
      if (slot.worker_id == id) return name;
  return "";
}

// Contiguous shares of the shards, by name. Locality only: any loader answers for any tile.
proto::ShardAssignment assignment_of(const State& state) {
  proto::ShardAssignment assignment;
  assignment.version = state.assignment_version;
  int64_t serving = 0, index = 0;
  for (const auto& [name, loader] : state.loaders) serving += loader.serving;
  for (const auto& [name, loader] : state.loaders) {
    if (!loader.serving) continue;
    assignment.loaders.push_back({name, loader.address, loader.shard_count * index / serving, loader.shard_count * (index + 1) / serving});
    ++index;
  }
  return assignment;
}

// The trainer's process is known to be dead.
void worker_dead(Context& c, const WorkerId& id, uint64_t incarnation, const std::string& reason) {
  const auto it = c.state.workers.find(id);
  if (it == c.state.workers.end() || it->second.incarnation != incarnation) return;
  Worker& worker = it->second;
  if (is_member(c.state.world, id)) lose_member(c, worker, WorkerState::kGone, reason);
  worker.state = WorkerState::kGone;
  worker.gone_at = c.now;
  worker.reason = reason;
  worker.ready = false;
  worker.rank = -1;
}

}  // namespace

void fence(Context& c, const WorkerId& id, uint64_t incarnation, const std::string& reason) {
  if (const auto daemon = c.state.daemons.find(daemon_of(c.state, id)); daemon != c.state.daemons.end()) c.send(daemon->second.peer, proto::FenceTrainer{id, incarnation, reason});
}

void refuse(Context& c, const std::string& peer, const std::string& reason, int exit_code) {
  c.alert("warning", "refused: " + reason);
  c.send(peer, proto::Refused{reason, exit_code});
}

Worker* worker_of_peer(Context& c, const std::string& peer) {
  const auto id = c.state.worker_by_peer.find(peer);
  if (id == c.state.worker_by_peer.end()) return nullptr;
  Worker& worker = c.state.workers[id->second];
  return worker.peer == peer && worker.state != WorkerState::kGone ? &worker : nullptr;
}

void on_daemon_hello(Context& c, const MessageEvent& e, const proto::DaemonHello& hello) {
  if (!version_fits(c, e.peer, "node daemon " + e.sender, hello.build)) return;
  const bool known = c.state.daemons.contains(e.sender) && c.state.daemons[e.sender].incarnation == e.incarnation;
  const Millis since = known ? c.state.daemons[e.sender].known_since : c.now;
  c.state.daemons[e.sender] = {e.peer, hello.host, e.incarnation, hello.slots, c.now, since};
  if (!known) c.log("info", "node daemon " + e.sender + " on " + hello.host + " offers " + std::to_string(hello.slots.size()) + " workers");
  for (auto& [id, worker] : c.state.workers) {
    worker.daemon = daemon_of(c.state, id);
    if (worker.state == WorkerState::kLost && worker.daemon == e.sender) fence(c, id, worker.incarnation, worker.reason);
  }
  c.send(e.peer, proto::DaemonWelcome{c.config.run_id, c.config.run_dir, print_function(c.config.function), print_operation(c.config.operation)});
}

// "cpu", "cuda": the first word of a numerics class.
std::string kind_of(const std::string& numerics_class) { return numerics_class.substr(0, numerics_class.find(';')); }

void on_trainer_hello(Context& c, const MessageEvent& e, const proto::TrainerHello& hello) {
  if (!version_fits(c, e.peer, "trainer " + hello.worker_id, hello.build)) return;
  if (hello.highest_term > c.config.term)
    return refuse(c, e.peer, "trainer " + hello.worker_id + " obeys term " + std::to_string(hello.highest_term) + ", this coordinator holds the older term " + std::to_string(c.config.term), exit_codes::kFenced);
  if (c.state.numerics_class.empty()) {
    c.state.numerics_class = hello.numerics_class;
    c.effects.push_back(StoreMeta{"numerics_class", hello.numerics_class});
  } else if (kind_of(c.state.numerics_class) != kind_of(hello.numerics_class)) {
    return refuse(c, e.peer, "trainer " + hello.worker_id + " computes on " + kind_of(hello.numerics_class) + ", the run on " + kind_of(c.state.numerics_class) +
                                 ": ranks of one generation need one kind of device; start its node with --devices of that kind", exit_codes::kConfig);
  } else if (c.state.numerics_class != hello.numerics_class && c.config.function.reduction == "fast") {
    // The function promises no bits beyond equal replicas: said, and allowed.
    if (!c.state.workers.contains(hello.worker_id))
      c.alert("warning", "trainer " + hello.worker_id + " computes in the numerics class '" + hello.numerics_class + "', the run began in '" + c.state.numerics_class + "': allowed with function.reduction fast, results depend on who computes");
  } else if (c.state.numerics_class != hello.numerics_class) {
    return refuse(c, e.peer, "trainer " + hello.worker_id + " computes in the numerics class '" + hello.numerics_class + "', the run in '" + c.state.numerics_class +
                                 "': equal bits cannot be promised; use like devices and the same build, or function.reduction: fast", exit_codes::kConfig);
  }
  Worker& worker = c.state.workers[hello.worker_id];
  const bool same = worker.incarnation == e.incarnation && worker.state != WorkerState::kGone;
  if (!same && worker.incarnation != 0) worker_dead(c, hello.worker_id, worker.incarnation, "a new process took its place");
  if (same && worker.peer == e.peer) {  // its hello crossed our welcome, or it waits for the dataset
    worker.last_heard = c.now;
    if (worker.welcomed && c.now - worker.welcomed_at >= c.config.repeat_ms) worker.welcomed = false;  // it has not heard the first
    return welcome(c, worker);
  }
  const bool adopted = c.state.world.phase == WorldPhase::kRunning && hello.generation == c.state.world.generation &&
                       std::any_of(c.state.world.members.begin(), c.state.world.members.end(),
                                   [&](const auto& m) { return m.worker_id == hello.worker_id && m.incarnation == e.incarnation; });
  c.state.worker_by_peer.erase(worker.peer);
  worker = Worker{};
  worker.id = hello.worker_id;
  worker.peer = e.peer;
  c.state.worker_by_peer[e.peer] = worker.id;
  worker.incarnation = e.incarnation;
  worker.pid = hello.pid;
  worker.host = hello.host, worker.device = hello.device, worker.numerics_class = hello.numerics_class, worker.mesh_address = hello.mesh_address;
  worker.daemon = daemon_of(c.state, hello.worker_id);
  worker.last_heard = c.now;
  worker.step = hello.applied;
  worker.reason = c.state.dataset ? "warming up" : "waits for the dataset";
  if (adopted) {
    worker.state = WorkerState::kRunning, worker.ready = true, worker.reason = "adopted with its world";
    for (const auto& m : c.state.world.members)
      if (m.worker_id == worker.id) worker.rank = m.rank;
    c.state.world.started.insert(worker.id);
  } else if (hello.generation != Generation{} && hello.applied >= 0) {
    worker.ready = true;  // warmed up in an older world; its state counts for nothing here
    worker.state = WorkerState::kReady;
  }
  c.log("info", "worker " + worker.id + " joined from " + worker.host + (adopted ? ", adopted with generation " + to_string(hello.generation) : ""));
  welcome(c, worker);
  if (c.state.dataset) c.send(worker.peer, assignment_of(c.state));
}

void welcome_trainers(Context& c) {
  for (auto& [id, worker] : c.state.workers)
    if (worker.state != WorkerState::kGone) welcome(c, worker);
}

namespace {

// A step that ends its trainer again and again will do so for ever: the run stops and names the step and its tiles. Somebody's
// kill -9 is no failure of the step; the kernel's, for memory, is.
void count_crash(Context& c, const Worker& worker, const proto::TrainerExited& exited) {
  const bool crashed = exited.signal != 0 ? !killed_from_outside(exited.signal, exited.cause) : exited.exit_code == exit_codes::kBug;
  if (!crashed || !is_member(c.state.world, worker.id) || c.state.world.phase != WorldPhase::kRunning) return;
  const Step step = c.state.committed;
  const std::string key = std::to_string(step) + ":" + exited.cause;
  if (++c.state.faults_at_step[key] < kSameFailures) return;
  const int64_t tiles = c.config.function.batch.tiles, world = int64_t(c.state.world.members.size());
  const int64_t rank = c.state.world.ranks.at(worker.id);
  finish(c, RunState::kFailed, exit_codes::kBug, "step " + std::to_string(step) + " ended its trainer " + std::to_string(kSameFailures) + " times (" + exited.cause + "), the last time " + worker.id + ", rank " +
                                                     std::to_string(rank) + " of " + std::to_string(world) + ", which had about tiles " + std::to_string(tiles * rank / world) + " to " + std::to_string(std::max<int64_t>(tiles * rank / world, tiles * (rank + 1) / world - 1)) + "; its log has the cause");
}

}  // namespace

void on_trainer_exited(Context& c, const proto::TrainerExited& exited) {
  const auto it = c.state.workers.find(exited.worker_id);
  const bool known = it != c.state.workers.end() && (it->second.incarnation == exited.incarnation || exited.incarnation == 0);
  c.log(exited.exit_code == 0 ? "info" : "warning", "worker " + exited.worker_id + " ended: " + exited.cause + (exited.will_restart ? "; its daemon starts it again" : ""));
  if (known) count_crash(c, it->second, exited);
  if (known) worker_dead(c, exited.worker_id, it->second.incarnation, exited.cause);
  // Codes that a new process would meet again end the run, with the trainer's own reason when it said one.
  const int code = exited.exit_code;
  if (code == exit_codes::kConfig || code == exit_codes::kDataCorrupt)
    finish(c, RunState::kFailed, code, known && !it->second.reason.empty() ? "worker " + exited.worker_id + ": " + it->second.reason : exited.cause);
}

void on_fenced(Context& c, const proto::TrainerFenced& fenced) { worker_dead(c, fenced.worker_id, fenced.incarnation, "fenced: its daemon killed it"); }

namespace {

// The node's trainers leave at the next boundary. False: none is left, the node is gone.
bool drain(Context& c, const std::string& name, const std::string& reason) {
  int alive = 0;
  for (const auto& slot : c.state.daemons[name].slots) {
    const auto it = c.state.workers.find(slot.worker_id);
    if (it == c.state.workers.end() || it->second.state == WorkerState::kGone) continue;
    it->second.draining = c.state.any_draining = true;
    it->second.reason = "its node drains: " + reason;
    ++alive;
  }
  if (alive > 0) c.log("info", "node daemon " + name + " drains (" + reason + "): " + std::to_string(alive) + " workers leave at the next boundary");
  return alive > 0;
}

}  // namespace

void on_goodbye(Context& c, const MessageEvent& e, const proto::Goodbye& goodbye) {
  if (Worker* worker = worker_of_peer(c, e.peer)) {
    c.log(goodbye.exit_code == 0 ? "info" : "warning", "worker " + worker->id + " leaves: " + goodbye.reason);
    const WorkerId id = worker->id;
    worker_dead(c, id, worker->incarnation, goodbye.reason);
    if (goodbye.exit_code == exit_codes::kConfig || goodbye.exit_code == exit_codes::kDataCorrupt || goodbye.exit_code == exit_codes::kNonFinite)
      finish(c, RunState::kFailed, goodbye.exit_code, "worker " + id + ": " + goodbye.reason);
    return;
  }
  if (c.state.loaders.erase(e.sender) > 0) {
    c.log("info", "loader " + e.sender + " leaves: " + goodbye.reason);
    assign_shards(c);
  }
  if (c.state.daemons.contains(e.sender)) {
    if (goodbye.exit_code == exit_codes::kDrained && drain(c, e.sender, goodbye.reason)) return;
    c.log("info", "node daemon " + e.sender + " leaves: " + goodbye.reason);
    for (const auto& slot : c.state.daemons[e.sender].slots)
      if (const auto it = c.state.workers.find(slot.worker_id); it != c.state.workers.end()) worker_dead(c, slot.worker_id, it->second.incarnation, "its daemon left");
    c.state.daemons.erase(e.sender);
  }
}

void on_loader_hello(Context& c, const MessageEvent& e, const proto::LoaderHello& hello) {
  if (!version_fits(c, e.peer, "loader " + e.sender, hello.build)) return;
  Loader& loader = c.state.loaders[e.sender];
  if (loader.incarnation == e.incarnation && loader.peer == e.peer && (loader.serving || c.now - loader.welcomed_at < c.config.repeat_ms)) return;
  loader = Loader{};
  loader.peer = e.peer, loader.address = hello.data_address, loader.host = hello.host, loader.incarnation = e.incarnation, loader.last_heard = c.now;
  loader.reason = "opens the dataset";
  loader.welcomed_at = c.now;
  c.log("info", "loader " + e.sender + " joined from " + hello.host);
  proto::LoaderWelcome w;
  w.run_id = c.config.run_id;
  w.run_dir = c.config.run_dir;
  FunctionConfig function = c.config.function;
  if (c.state.dataset) function.data.manifest_digest = to_hex(c.state.dataset->manifest_digest);
  w.function_yaml = print_function(function);
  w.data_path = c.config.operation.data_path;
  w.manifest_folder = c.config.run_dir + "/../.manifests";
  w.loader_threads = c.config.operation.loader_threads;
  w.operation_yaml = print_operation(c.config.operation);
  c.send(e.peer, w);
}

void on_loader_dataset(Context& c, const MessageEvent& e, const proto::LoaderDataset& d) {
  Loader& loader = c.state.loaders[e.sender];
  if (!d.error.empty()) {
    loader.reason = d.error;
    if (c.state.dataset) return refuse(c, e.peer, "loader " + e.sender + ": " + d.error, d.exit_code ? d.exit_code : exit_codes::kDataCorrupt);
    return finish(c, RunState::kFailed, d.exit_code ? d.exit_code : exit_codes::kDataCorrupt, d.error);
  }
  if (!c.state.dataset) {
    auto length = run_length(c.config.function, d.sample_count);
    if (!length) return finish(c, RunState::kFailed, exit_codes::kConfig, length.error().message);
    c.state.dataset = Dataset{d.manifest_digest, d.sample_count, d.decoder_fingerprint};
    c.state.length = *length;
    c.effects.push_back(StoreMeta{"manifest_digest", to_hex(d.manifest_digest)});
    c.effects.push_back(StoreMeta{"decoder_fingerprint", d.decoder_fingerprint});
    c.effects.push_back(StoreMeta{"sample_count", std::to_string(d.sample_count)});
    c.log("info", "dataset " + to_hex(d.manifest_digest) + ": " + std::to_string(d.sample_count) + " samples, " + std::to_string(length->steps_per_epoch) + " steps an epoch, " +
                      std::to_string(length->total_steps) + " steps in all, " + std::to_string(d.sample_count % c.config.function.batch.global()) + " samples of an epoch left over");
    c.set_run_state(RunState::kStarting, "waiting for workers");
  } else {
    if (d.manifest_digest != c.state.dataset->manifest_digest)
      return refuse(c, e.peer, "loader " + e.sender + " serves dataset " + to_hex(d.manifest_digest) + ", the run trains on " + to_hex(c.state.dataset->manifest_digest) + "; give it the same data",
                    exit_codes::kDataCorrupt);
    if (d.decoder_fingerprint != c.state.dataset->decoder_fingerprint)
      return refuse(c, e.peer, "loader " + e.sender + " decodes with " + d.decoder_fingerprint + ", the run with " + c.state.dataset->decoder_fingerprint, exit_codes::kVersionMismatch);
    if (c.state.length.total_steps == 0) {  // a restarted coordinator knows the dataset from its store
      auto length = run_length(c.config.function, d.sample_count);
      if (!length) return finish(c, RunState::kFailed, exit_codes::kConfig, length.error().message);
      c.state.length = *length;
    }
  }
  loader.serving = true;
  loader.shard_count = d.shard_count;
  loader.reason = "serves tiles";
  welcome_trainers(c);
  assign_shards(c);
}

void assign_shards(Context& c) {
  ++c.state.assignment_version;
  c.state.assigned_at = c.now;
  const proto::ShardAssignment assignment = assignment_of(c.state);
  for (const auto& [name, loader] : c.state.loaders)
    if (loader.serving) c.send(loader.peer, assignment);
  for (const auto& [id, worker] : c.state.workers)
    if (worker.welcomed && worker.state != WorkerState::kGone) c.send(worker.peer, assignment);
}

// A loader that hears nothing for minutes takes its coordinator for gone: it hears the assignment again.
void repeat_assignment(Context& c) {
  if (c.now - c.state.assigned_at < kAssignmentEveryMs) return;
  c.state.assigned_at = c.now;
  const proto::ShardAssignment assignment = assignment_of(c.state);
  for (const auto& [name, loader] : c.state.loaders)
    if (loader.serving) c.send(loader.peer, assignment);
}

namespace {

// Every rank waits in an exchange and none comes out: a collective that is stuck, and nobody in particular to blame.
void check_exchange(Context& c) {
  const World& w = c.state.world;
  if (w.phase != WorldPhase::kRunning || w.members.size() < 2) return;
  double longest = 0, shortest_wait = 1e9;
  for (const auto& member : w.members) {
    const Worker& worker = c.state.workers[member.worker_id];
    if (worker.phase != proto::Phase::kReduce && worker.phase != proto::Phase::kVote) return;
    longest = std::max(longest, worker.step_seconds_max);
    shortest_wait = std::min(shortest_wait, worker.phase_seconds);
  }
  if (Millis(shortest_wait * 1000) > Millis(2000 * longest) + c.config.exchange_slack_ms) stop_world(c, "every rank waits in an exchange for " + seconds(Millis(shortest_wait * 1000)));
}

// Nobody of the world is heard, no node daemon either, but not for long: rather this host is cut off than everybody dead, and
// the world trains on.
bool isolated(Context& c) {
  const World& w = c.state.world;
  if (w.phase != WorldPhase::kRunning || w.members.empty()) return false;
  Millis heard = -1;
  for (const auto& [id, worker] : c.state.workers) heard = std::max(heard, worker.last_heard);
  for (const auto& [name, daemon] : c.state.daemons) heard = std::max(heard, daemon.last_heard);
  const Millis silent = c.now - heard;
  if (silent <= c.config.silence_ms) return false;
  if (silent > c.config.isolation_ms) return false;
  c.set_run_state(RunState::kRecovering, "no node is heard for " + std::to_string(silent / 1000) + " s: this host may be cut off; its workers train on");
  return true;
}

// A trainer that hangs before it has said a word: whichever process runs in the slot is killed, and its daemon starts another.
void check_starts(Context& c) {
  for (auto& [name, daemon] : c.state.daemons)
    for (const auto& slot : daemon.slots) {
      const auto it = c.state.workers.find(slot.worker_id);
      if (it != c.state.workers.end() && it->second.state != WorkerState::kGone) continue;
      Millis& since = it == c.state.workers.end() ? daemon.known_since : it->second.gone_at;
      if (c.now - std::max(since, daemon.known_since) < c.config.starting_silence_ms) continue;
      since = daemon.known_since = c.now;
      c.send(daemon.peer, proto::FenceTrainer{slot.worker_id, 0, "no word from it for " + seconds(c.config.starting_silence_ms) + " after its start"});
    }
}

}  // namespace

void check_silence(Context& c) {
  repeat_assignment(c);
  if (isolated(c)) return;
  for (auto& [id, worker] : c.state.workers) {
    if (worker.state == WorkerState::kLost && c.now - worker.fenced_at >= c.config.repeat_ms) worker.fenced_at = c.now, fence(c, id, worker.incarnation, worker.reason);
    if (worker.state == WorkerState::kGone || worker.state == WorkerState::kLost || worker.state == WorkerState::kFenced) continue;
    const bool member = is_member(c.state.world, id);
    const Millis silent = c.now - worker.last_heard, allowed = worker.ready || member ? c.config.silence_ms : c.config.starting_silence_ms;
    if (silent > allowed) {
      const std::string reason = "silent for " + seconds(silent);
      if (member) lose_member(c, worker, WorkerState::kLost, reason);
      worker.state = WorkerState::kLost, worker.reason = reason, worker.ready = false, worker.rank = -1;
      c.log("warning", "worker " + id + " is lost: " + reason);
      fence(c, id, worker.incarnation, reason);
      continue;
    }
    if (silent > allowed / 2) worker.state = WorkerState::kSuspect, worker.reason = "silent for " + seconds(silent);
    const bool timed = worker.phase == proto::Phase::kEvaluate || worker.phase == proto::Phase::kApply;
    const Millis usual = Millis(worker.step_seconds_max * 1000.0), late = Millis(worker.phase_seconds * 1000.0);
    if (member && c.state.world.phase == WorldPhase::kRunning && timed && usual > 0 && late > 2 * usual + c.config.phase_slack_ms) {
      const std::string reason = "hangs in a phase for " + seconds(late) + ", its longest recent step took " + seconds(usual);
      lose_member(c, worker, WorkerState::kLost, reason);
      worker.state = WorkerState::kLost, worker.reason = reason, worker.ready = false, worker.rank = -1;
      fence(c, id, worker.incarnation, reason);
    }
  }
  check_starts(c);
  check_exchange(c);
  std::vector<std::string> gone;
  for (auto& [name, loader] : c.state.loaders)
    if (c.now - loader.last_heard > (loader.serving ? c.config.silence_ms : c.config.starting_silence_ms * 10)) gone.push_back(name);
  for (const auto& name : gone) {
    c.log("warning", "loader " + name + " is lost: silent for " + seconds(c.now - c.state.loaders[name].last_heard) + "; the others take its tiles");
    c.state.loaders.erase(name);
  }
  if (!gone.empty()) assign_shards(c);
  std::erase_if(c.state.daemons, [&](const auto& entry) { return c.now - entry.second.last_heard > 2 * c.config.silence_ms; });
}

}  // namespace tessera::coordinator
