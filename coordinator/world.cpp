// World formation: which workers form the next generation, from which step, and who is the source of state.
#include <algorithm>

#include "coordinator/machine_parts.h"

namespace tessera::coordinator {
namespace {

constexpr int kWrongResults = 3;

struct Decision {
  Step start_step = 0;
  proto::StateSource source = proto::StateSource::kInitial;
  std::string checkpoint_path;
  WorkerId source_worker;
  std::string reason;
};

const CheckpointEntry* newest_good(const State& state) {
  for (auto it = state.checkpoints.rbegin(); it != state.checkpoints.rend(); ++it)
    if (it->second.ok) return &it->second;
  return nullptr;
}

// Where state comes from, given what the sealed survivors said. If anyone applied step k, every survivor holds its whole
// gradient (the vote fence), so laggards roll forward and nothing is lost; a step that nobody is known to have applied is
// dropped and evaluated again, to the same bits. Survivors may be far behind the ledger, when all state was lost before and
// they are on the way from a checkpoint to where the run was: they go on from where they are, unless a checkpoint is ahead.
Decision decide(const State& state, const std::map<WorkerId, proto::Sealed>& survivors) {
  Decision d;
  Step applied = -1;
  for (const auto& [id, sealed] : survivors) applied = std::max(applied, sealed.applied);
  const CheckpointEntry* checkpoint = newest_good(state);
  if (applied >= 0 && !state.rewind && (applied >= state.committed - 1 || !checkpoint || applied >= checkpoint->step)) {
    const bool behind = applied < state.committed;  // the ledger has step `applied`: somebody who is gone applied it
    const auto holds = [&](const proto::Sealed& s, Step step) { return s.applied == step || (s.applied + 1 == step && s.prepared); };
    d.start_step = applied;
    if (behind && std::any_of(survivors.begin(), survivors.end(), [&](const auto& s) { return holds(s.second, applied + 1); })) d.start_step = applied + 1;
    int holders = 0;
    for (const auto& [id, sealed] : survivors) {
      if (!holds(sealed, d.start_step)) continue;
      if (holders++ == 0) d.source_worker = id;
    }
    d.source = proto::StateSource::kPeer;
    d.reason = std::to_string(holders) + " of " + std::to_string(survivors.size()) + " survivors hold state[" + std::to_string(d.start_step) + "], " + d.source_worker + " is the source";
    return d;
  }
  if (checkpoint) {
    d = {checkpoint->step, proto::StateSource::kCheckpoint, checkpoint->path, "", "no survivor holds the state: checkpoint " + std::to_string(checkpoint->step)};
    return d;
  }
  d.reason = "no survivor and no checkpoint: from the initial state";
  return d;
}

int expected_workers(const State& state) {
  int count = 0;
  for (const auto& [name, daemon] : state.daemons) count += int(daemon.slots.size());
  return count;
}

bool can_join(const Worker& worker) { return worker.ready && !worker.draining && worker.state != WorkerState::kGone && worker.state != WorkerState::kLost && worker.state != WorkerState::kFenced; }

void start_world(Context& c, const std::vector<WorkerId>& members) {
  State& s = c.state;
  std::map<WorkerId, proto::Sealed> survivors;
  for (const auto& old : s.world.members) {  // the same process that sealed: a new one of that name holds nothing
    const auto sealed = s.world.sealed.find(old.worker_id);
    const bool here = std::find(members.begin(), members.end(), old.worker_id) != members.end() && s.workers[old.worker_id].incarnation == old.incarnation;
    if (here && sealed != s.world.sealed.end() && !s.world.lost.contains(old.worker_id)) survivors[old.worker_id] = sealed->second;
  }
  const Decision d = decide(s, survivors);
  s.rewind = false;
  if (d.source == proto::StateSource::kInitial && s.root > 0)
    return finish(c, RunState::kFailed, exit_codes::kDataCorrupt, "this run began with an imported checkpoint of step " + std::to_string(s.root) + ", and no good checkpoint is left");
  World next;
  next.phase = WorldPhase::kStarting;
  next.generation = {c.config.term, s.next_number++};
  next.since = c.now;
  next.start_step = d.start_step;
  proto::WorldStart start;
  start.generation = next.generation;
  start.lineage = c.config.lineage;
  start.start_step = d.start_step;
  start.source = d.source;
  start.checkpoint_path = d.checkpoint_path;
  start.stop_after = final_step(s, c.config);
  for (size_t i = 0; i < members.size(); ++i) {
    const Worker& worker = s.workers[members[i]];
    next.members.push_back({worker.id, worker.incarnation, Rank(i), worker.mesh_address});
    next.ranks[worker.id] = Rank(i);
    if (worker.id == d.source_worker) start.source_rank = Rank(i);
  }
  if (const auto it = s.checkpoints.find(d.start_step); d.source == proto::StateSource::kCheckpoint && it != s.checkpoints.end()) start.expected_digest = it->second.state_digest;
  start.members = next.members;
  next.start = start, next.said_at = c.now;
  s.past_members[next.generation] = next.members;
  while (s.past_members.size() > 16) s.past_members.erase(s.past_members.begin());
  for (const auto& member : next.members) {
    Worker& worker = s.workers[member.worker_id];
    worker.rank = member.rank;
    worker.state = WorkerState::kRunning;
    worker.reason = member.rank < c.config.function.batch.tiles ? "rank " + std::to_string(member.rank) : "spare, rank " + std::to_string(member.rank);
  }
  ++s.generation_count;
  c.log("info", "generation " + to_string(next.generation) + ": " + std::to_string(members.size()) + " workers from step " + std::to_string(d.start_step) + ": " + d.reason);
  const World before = std::exchange(s.world, std::move(next));
  s.gather_since = s.gap_since = -1;
  // Durable before anybody acts on it: a coordinator that dies here finds its world again.
  c.effects.push_back(StoreMeta{"world", print_world(s.world)});
  c.effects.push_back(StoreMeta{"generations", std::to_string(s.generation_count)});
  const proto::WorldStart changes = proto::shorten(start, before.generation, before.members);
  for (const auto& member : s.world.members) {
    const bool has_list = survivors.contains(member.worker_id) && before.sealed.at(member.worker_id).applied >= 0;
    c.send(s.workers[member.worker_id].peer, has_list ? changes : start);
  }
  c.set_run_state(s.run_state == RunState::kRecovering ? RunState::kRecovering : RunState::kStarting, "generation " + to_string(s.world.generation) + " connects " + std::to_string(members.size()) + " workers");
}

// Waits for enough workers, a little longer for all that are expected, then starts.
void gather(Context& c) {
  State& s = c.state;
  if (!s.dataset || s.stop_boundary) return;
  // A coordinator that died behind the end of the run, its workers sent home already: nothing is left to do but to say so.
  const Step end = final_step(s, c.config);
  if (const auto last = s.checkpoints.find(end); end > 0 && s.committed >= end && last != s.checkpoints.end() && last->second.ok) {
    s.stop_boundary = end;
    return finish_if_done(c);
  }
  std::vector<WorkerId> members;
  for (const auto& [id, worker] : s.workers)
    if (can_join(worker)) members.push_back(id);
  if (s.pause_asked && s.stop_asked) {
    if (const auto here = s.checkpoints.find(s.committed); here != s.checkpoints.end() && here->second.ok)
      return finish(c, RunState::kCancelled, exit_codes::kDrained, s.stop_reason + "; it was paused after step " + std::to_string(s.committed) + " with a checkpoint");
  } else if (s.pause_asked) {
    return c.set_run_state(RunState::kPaused, "paused after step " + std::to_string(s.committed) + " by an operator; " + std::to_string(members.size()) + " workers wait: tessera resume");
  }
  const int have = int(members.size()), expected = std::max(expected_workers(s), have);
  const auto waiting_state = s.generation_count == 0 ? RunState::kStarting : RunState::kRecovering;
  if (s.stop_asked) {
    if (s.generation_count == 0 || have == 0) return finish(c, RunState::kCancelled, exit_codes::kDrained, s.stop_reason + "; stopped before a world was running");
  }
  bool loaders = false;
  for (const auto& [name, loader] : s.loaders) loaders = loaders || loader.serving;
  const std::string counts = std::to_string(have) + " of " + std::to_string(expected) + " workers ready";
  if (have < c.config.operation.min_workers || have == 0 || !loaders) {
    s.gather_since = -1;
    return c.set_run_state(waiting_state, !loaders && have > 0 ? "no loader serves the dataset" : counts + ", " + std::to_string(c.config.operation.min_workers) + " needed");
  }
  if (s.gather_since < 0) s.gather_since = c.now;
  // Survivors go on at once and take the others in at a boundary; without any, a little patience saves a change of world.
  const bool survivors = std::any_of(s.world.members.begin(), s.world.members.end(), [&](const auto& old) {
    return s.world.sealed.contains(old.worker_id) && !s.world.lost.contains(old.worker_id) && std::find(members.begin(), members.end(), old.worker_id) != members.end() &&
           s.workers[old.worker_id].incarnation == old.incarnation && s.world.sealed.at(old.worker_id).applied >= 0;
  });
  if (!survivors && have < expected && c.now - s.gather_since < c.config.gather_ms) return c.set_run_state(waiting_state, counts + ": waiting a little for the others");
  start_world(c, members);
}

// Members that can still answer have all sealed, or the deadline has passed.
void drive_sealing(Context& c) {
  World& w = c.state.world;
  if (w.sealed.size() + w.lost.size() < w.members.size() && c.now - w.since <= c.config.seal_deadline_ms) return;
  bool all = true;
  for (const auto& member : w.members) {
    if (w.sealed.contains(member.worker_id) || w.lost.contains(member.worker_id)) continue;
    if (c.now - w.since > c.config.seal_deadline_ms) {
      lose_member(c, c.state.workers[member.worker_id], WorkerState::kLost, "did not seal in time");
      continue;
    }
    all = false;
  }
  if (!all) return;
  w.phase = WorldPhase::kNone;
  c.state.gather_since = -1;
}

// A planned end: every member sealed at the same boundary without being told to stop.
void drive_boundary(Context& c) {
  State& s = c.state;
  World& w = s.world;
  if (w.members.empty() || w.sealed.size() < w.members.size()) return;
  const Step boundary = w.sealed.begin()->second.applied;
  for (const auto& [id, sealed] : w.sealed)
    if (sealed.applied != boundary) return stop_world(c, "members stopped at different steps");
  w.phase = WorldPhase::kNone;
  for (const auto& member : w.members) {
    Worker& worker = s.workers[member.worker_id];
    worker.state = WorkerState::kReady, worker.reason = "stopped at step " + std::to_string(boundary);
  }
  c.log("info", "generation " + to_string(w.generation) + " stopped at step " + std::to_string(boundary) + (w.stop_reason.empty() ? "" : ": " + w.stop_reason));
  if (boundary >= final_step(s, c.config) || s.stop_asked) {
    s.stop_boundary = boundary;
    w.since = c.now;
    c.set_run_state(RunState::kDraining, "step " + std::to_string(boundary) + " is reached; writing its checkpoint");
  }
}

// All have sealed, which they do behind their share of the last checkpoint, and yet a share is unknown here: its message
// went down with an earlier coordinator, or two ranks died with the share that both held. The members form a world at
// the boundary again and write it.
bool last_checkpoint_lost(Context& c) {
  State& s = c.state;
  if (const auto it = s.checkpoints.find(*s.stop_boundary); it != s.checkpoints.end() && it->second.ok) return false;
  for (const auto& [name, attempt] : s.attempts)
    if (attempt.publishing) return false;
  if (s.committed >= *s.stop_boundary) return c.now - s.world.since > c.config.last_checkpoint_ms;
  if (c.now - s.world.since < c.config.gap_ms) return false;
  rewind(c);
  return true;
}

void direct(Context& c, bool checkpoint, const std::string& reason) {
  World& w = c.state.world;
  w.planned_stop = true, w.directed_checkpoint = checkpoint;
  w.stop_reason = reason;
  w.said_at = c.now;
  for (const auto& member : w.members)
    if (member.rank == 0) c.send(c.state.workers[member.worker_id].peer, proto::WorldDirective{w.generation, 0, checkpoint, reason});
}

void drive_running(Context& c) {
  State& s = c.state;
  World& w = s.world;
  if (w.phase == WorldPhase::kStarting && c.now - w.since > c.config.start_deadline_ms) return stop_world(c, "not all members started in time");
  if (w.phase == WorldPhase::kRunning && w.started.size() < w.members.size() && c.now - w.since > c.config.adopt_ms) return stop_world(c, "not all members of the adopted world came back");
  if (w.phase != WorldPhase::kRunning || w.planned_stop) return;
  if (s.stop_asked) {
    direct(c, true, s.stop_reason);
    return c.set_run_state(RunState::kDraining, s.stop_reason + "; stopping at the next step with a checkpoint");
  }
  if (s.pause_asked) {
    direct(c, true, "paused by an operator");
    return c.set_run_state(RunState::kDraining, "pausing at the next step with a checkpoint");
  }
  // Members whose node drains leave at a boundary; the last ones leave a checkpoint behind.
  int leaving = 0, staying = 0;
  for (const auto& member : w.members) (s.workers[member.worker_id].draining ? leaving : staying) += 1;
  if (leaving > 0) return direct(c, staying == 0, std::to_string(leaving) + " workers leave with their node");
  // A warmed-up worker that is not a member joins at a boundary.
  int joiners = 0;
  for (const auto& [id, worker] : s.workers) joiners += can_join(worker) && !is_member(w, id);
  if (joiners > 0 && c.now - w.since > c.config.join_ms) direct(c, false, std::to_string(joiners) + " workers join");
}

// Who has not answered is told again: the message or the answer may have gone down with a connection. All of these may
// arrive twice.
void repeat_unanswered(Context& c) {
  World& w = c.state.world;
  if (w.phase == WorldPhase::kNone || c.now - w.said_at < c.config.repeat_ms) return;
  w.said_at = c.now;
  for (const auto& member : w.members) {
    const Worker& worker = c.state.workers[member.worker_id];
    if (w.lost.contains(member.worker_id) || w.sealed.contains(member.worker_id) || worker.peer.empty()) continue;
    const bool stopped = worker.generation == w.generation && (worker.phase == proto::Phase::kFinished || worker.phase == proto::Phase::kSealed);
    if (w.phase == WorldPhase::kSealing) c.send(worker.peer, proto::WorldStop{w.generation, w.stop_reason});
    else if (w.phase == WorldPhase::kStarting && w.start && worker.generation != w.generation) c.send(worker.peer, *w.start);
    else if (w.phase == WorldPhase::kRunning && stopped) c.send(worker.peer, proto::WorldStop{w.generation, "say again where you stopped"});
    else if (w.planned_stop && member.rank == 0) c.send(worker.peer, proto::WorldDirective{w.generation, 0, w.directed_checkpoint, w.stop_reason});
  }
}

}  // namespace

bool is_member(const World& world, const WorkerId& id) {
  if (world.phase == WorldPhase::kNone) return false;
  return world.ranks.contains(id);
}

void stop_world(Context& c, const std::string& reason) {
  World& w = c.state.world;
  if (w.phase != WorldPhase::kStarting && w.phase != WorldPhase::kRunning) return;
  w.phase = WorldPhase::kSealing, w.stop_reason = reason;
  w.since = w.said_at = c.now;
  for (const auto& member : w.members)
    if (!w.lost.contains(member.worker_id) && !w.sealed.contains(member.worker_id)) c.send(c.state.workers[member.worker_id].peer, proto::WorldStop{w.generation, reason});
  c.set_run_state(RunState::kRecovering, "generation " + to_string(w.generation) + " stopped: " + reason);
}

void lose_member(Context& c, Worker& worker, WorkerState state, const std::string& reason) {
  World& w = c.state.world;
  if (!is_member(w, worker.id)) return;
  w.lost.insert(worker.id);
  w.sealed.erase(worker.id);
  worker.state = state, worker.reason = reason, worker.rank = -1, worker.ready = false;
  // What does not answer is killed before it can come back with an old world's state.
  if (state != WorkerState::kGone) fence(c, worker.id, worker.incarnation, reason);
  stop_world(c, "worker " + worker.id + ": " + reason);
}

void on_world_started(Context& c, const WorkerId& id, const proto::WorldStarted& started) {
  World& w = c.state.world;
  if (w.phase != WorldPhase::kStarting || started.generation != w.generation) return;
  w.started.insert(id);
  if (w.started.size() < w.members.size()) return;
  w.phase = WorldPhase::kRunning;
  w.since = c.now;
  c.state.last_progress = c.now;
  c.set_run_state(RunState::kRunning, std::to_string(w.members.size()) + " workers train");
}

void on_world_fault(Context& c, const WorkerId& id, const proto::WorldFault& fault) {
  State& s = c.state;
  World& w = s.world;
  if (fault.generation != w.generation || (w.phase != WorldPhase::kStarting && w.phase != WorldPhase::kRunning)) return;
  c.log("warning", "worker " + id + " at step " + std::to_string(fault.step) + ": " + fault.reason);
  if (fault.bad_checkpoint) {
    if (const auto it = s.checkpoints.find(w.start_step); it != s.checkpoints.end() && it->second.ok) {
      it->second.ok = false, it->second.reason = fault.reason;
      c.alert("error", "checkpoint " + std::to_string(w.start_step) + " is bad, falling back to an older one: " + fault.reason);
    }
    for (const auto& member : w.members) w.lost.erase(member.worker_id);
    return stop_world(c, "its checkpoint is bad");
  }
  if (fault.digests_differ) {
    c.alert("error", "replicas differ: " + fault.reason);
    for (const auto& member : w.members)
      if (fault.suspect < 0 || member.rank == fault.suspect) {
        Worker& worker = s.workers[member.worker_id];
        // One that differs again and again is not a cosmic ray: its device computes wrong.
        if (fault.suspect >= 0 && ++s.wrong_results[worker.id] >= kWrongResults) {
          worker.state = WorkerState::kFenced;
          refuse(c, worker.peer, "worker " + worker.id + " gave other results than its peers " + std::to_string(kWrongResults) + " times, the last: " + fault.reason + "; its device or memory is faulty", exit_codes::kDeviceFaulty);
        }
        lose_member(c, worker, WorkerState::kFenced, fault.reason);
      }
  }
  const std::string key = std::to_string(fault.step) + ":" + fault.reason;
  if (++s.faults_at_step[key] >= 3 && fault.step >= 0 && fault.digests_differ)
    return finish(c, RunState::kFailed, exit_codes::kDeviceFaulty, "step " + std::to_string(fault.step) + " failed three times for the same cause: " + fault.reason);
  stop_world(c, fault.reason);
}

void on_sealed(Context& c, const WorkerId& id, const proto::Sealed& sealed) {
  World& w = c.state.world;
  if (sealed.generation != w.generation || !is_member(w, id) || w.lost.contains(id)) return;
  w.sealed[id] = sealed;
  Worker& worker = c.state.workers[id];
  worker.step = sealed.applied;
  if (w.phase == WorldPhase::kSealing) worker.state = WorkerState::kReady, worker.reason = "sealed at step " + std::to_string(sealed.applied);
}

// Draining workers that no world needs are sent home; in the last case once their checkpoint is published.
void dismiss_draining(Context& c) {
  if (!c.state.any_draining) return;
  for (auto& [id, worker] : c.state.workers) {
    if (!worker.draining || worker.dismissed || worker.state == WorkerState::kGone || is_member(c.state.world, id)) continue;
    worker.dismissed = true, worker.state = WorkerState::kDraining;
    c.send(worker.peer, proto::Shutdown{worker.reason, exit_codes::kDrained});
  }
}

void drive_world(Context& c) {
  State& s = c.state;
  World& w = s.world;
  dismiss_draining(c);
  repeat_unanswered(c);
  if (w.phase == WorldPhase::kSealing) drive_sealing(c);
  if (w.phase == WorldPhase::kStarting || w.phase == WorldPhase::kRunning) {
    drive_boundary(c);
    if (w.phase != WorldPhase::kNone) drive_running(c);
  }
  if (w.phase == WorldPhase::kNone && !s.finished) {
    if (s.stop_boundary && last_checkpoint_lost(c)) {
      c.log("warning", "the checkpoint of step " + std::to_string(*s.stop_boundary) + " was not finished; writing it again");
      s.stop_boundary.reset();
    }
    if (s.stop_boundary) finish_if_done(c);
    else gather(c);
  }
}

}  // namespace tessera::coordinator
