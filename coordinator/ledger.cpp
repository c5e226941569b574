// The step ledger, the checkpoint catalogue, and the end of a run.
#include <algorithm>
#include <cstdio>
#include <utility>

#include "coordinator/machine_parts.h"

namespace tessera::coordinator {
namespace {

constexpr double kCollapsedRank = 1.5;
constexpr size_t kChains = 4096;

void retire_checkpoints(Context& c) {
  const auto& keep = c.config.operation.checkpoint;
  int64_t newer = 0;
  std::vector<Step> removed;
  for (auto it = c.state.checkpoints.rbegin(); it != c.state.checkpoints.rend(); ++it) {
    if (!it->second.ok) continue;
    const bool pinned = keep.keep_every > 0 && it->first % keep.keep_every == 0;
    if (++newer > keep.keep_last && !pinned) removed.push_back(it->first);
  }
  for (const Step step : removed) {
    c.effects.push_back(RemoveCheckpoint{step, c.state.checkpoints[step].path});
    c.state.checkpoints.erase(step);
  }
}

// Features that use next to one direction have collapsed: said once, and once when they have recovered.
void watch_collapse(Context& c, const proto::StepDone& done) {
  State& s = c.state;
  char rank[24];
  std::snprintf(rank, sizeof rank, "%.2f", done.effective_rank);
  if (!s.collapsed && done.effective_rank < kCollapsedRank) {
    s.collapsed = true;
    c.alert("warning", "the target features collapse: their effective rank is " + std::string(rank) + " at step " + std::to_string(done.step) +
                           ", all patches get nearly the same vector; raise optimizer.ema, lower the learning rate or lengthen the warm-up");
  } else if (s.collapsed && done.effective_rank > 2 * kCollapsedRank) {
    s.collapsed = false;
    c.log("info", "the target features have recovered: effective rank " + std::string(rank) + " at step " + std::to_string(done.step));
  }
}

void commit(Context& c, const proto::StepDone& done) {
  State& s = c.state;
  s.ledger[done.step] = {done.batch_digest, done.state_digest};
  s.chain_before[done.step] = s.batch_chain;
  if (s.chain_before.size() > kChains) s.chain_before.erase(s.chain_before.begin());
  s.batch_chain = chain(s.batch_chain, done.batch_digest);
  s.committed = done.step + 1;
  s.gap_since = -1;
  s.last_state_digest = done.state_digest;
  if (done.effective_rank > 0) watch_collapse(c, done);
  const double rank = done.effective_rank > 0 ? done.effective_rank : s.last_step ? s.last_step->effective_rank : 0;
  s.last_step = done;
  s.last_step->effective_rank = rank;
  s.last_progress = c.now;
  c.effects.push_back(StoreStep{done, s.batch_chain});
  publish_whole(c);
  s.skipped_in_row = done.skipped ? s.skipped_in_row + 1 : 0;
  s.skipped_total += done.skipped;
  if (done.skipped) c.alert("warning", "step " + std::to_string(done.step) + ": the gradient " + (c.config.function.reduction == "fixed32" ? "does not fit its integers (function.reduction fixed32) or is not finite" : "is not finite") + "; skipped (" + std::to_string(s.skipped_in_row) + " in a row)");
  if (s.skipped_in_row >= c.config.operation.max_skipped_steps)
    finish(c, RunState::kFailed, exit_codes::kNonFinite, std::to_string(s.skipped_in_row) + " steps in a row had a gradient that is not finite (operation.max_skipped_steps); lower the learning rate or look at the data");
  if (s.run_state == RunState::kRecovering && s.world.phase == WorldPhase::kRunning) c.set_run_state(RunState::kRunning, std::to_string(s.world.members.size()) + " workers train");
}

}  // namespace

void rewind(Context& c) {
  c.state.gap_since = -1, c.state.rewind = true;
  c.alert("warning", "step " + std::to_string(c.state.committed) + " was trained, and nobody is left who can report it: it is evaluated again from a checkpoint");
}

namespace {

// A step that was evaluated again: to other bits from the same batch, and the function promises no more.
bool may_differ(Context& c, Step step, const StepRecord& committed, const StepRecord& again) {
  const std::string caveat = placement_caveat(c.config.function);
  if (caveat.empty() || committed.batch != again.batch) return false;
  if (!std::exchange(c.state.said_other_bits, true))
    c.alert("warning", "step " + std::to_string(step) + " was evaluated again to other bits, from the same batch; the ledger keeps its first report (" + caveat + ")");
  return true;
}

}  // namespace

void on_step_done(Context& c, const MessageEvent& e, const proto::StepDone& done) {
  State& s = c.state;
  if (done.lineage != c.config.lineage) return c.log("warning", "a step of another lineage was reported and left alone");
  if (done.step == s.committed) {
    commit(c, done);
  } else if (const auto known = s.ledger.find(done.step); known != s.ledger.end()) {
    if (const StepRecord again{done.batch_digest, done.state_digest}; known->second != again && !may_differ(c, done.step, known->second, again)) {
      c.alert("error", "step " + std::to_string(done.step) + " was committed with state " + to_hex(known->second.state) + ", batch " + to_hex(known->second.batch) + " and evaluated again to state " +
                           to_hex(done.state_digest) + ", batch " + to_hex(done.batch_digest));
      return finish(c, RunState::kFailed, exit_codes::kDeviceFaulty, "step " + std::to_string(done.step) + " gave other bits when it was evaluated again: a device or its memory is faulty");
    }
    s.last_progress = c.now;
  } else {
    // Beyond a gap: its sender keeps it and the missing ones, and sends them again. Unless those who knew them are gone.
    if (s.gap_since < 0) s.gap_since = c.now;
    if (c.now - s.gap_since < c.config.gap_ms || s.world.phase != WorldPhase::kRunning) return;
    rewind(c);
    return stop_world(c, "the ledger lacks step " + std::to_string(s.committed));
  }
  if (!s.finished) c.send(e.peer, proto::StepDoneAck{s.committed - 1});
}

// Whole attempts, once the ledger holds every step below them: were the last ones to know a step gone, nobody could report
// it any more, and a state that came from behind it would leave a gap for ever.
void publish_whole(Context& c) {
  State& s = c.state;
  for (auto& [name, attempt] : s.attempts) {
    if (int(attempt.files.size()) < attempt.world_size || attempt.publishing || s.committed < attempt.step) continue;
    attempt.publishing = true;
    const auto chain = s.chain_before.find(attempt.step);
    PublishCheckpoint publish{name, attempt.step, {}, chain == s.chain_before.end() ? s.batch_chain : chain->second};
    for (const auto& [rank, part] : attempt.files) publish.files.push_back(part);
    c.effects.push_back(std::move(publish));
  }
}

void on_checkpoint_file(Context& c, const proto::CheckpointFile& file) {
  State& s = c.state;
  if (file.world_size < 1 || file.rank < 0 || file.rank >= file.world_size) return;
  if (const auto it = s.checkpoints.find(file.step); it != s.checkpoints.end() && it->second.ok) return;  // published by an earlier world
  Attempt& attempt = s.attempts[file.attempt];
  attempt.step = file.step, attempt.world_size = file.world_size, attempt.generation = file.generation;
  attempt.files[file.rank] = file;
  publish_whole(c);
}

// Every share of a snapshot is held by two ranks until it is published: rank r holds that of r + 1. What a dead rank did not
// write, its holder writes.
void repair_attempts(Context& c) {
  for (auto& [name, attempt] : c.state.attempts) {
    const auto members = c.state.past_members.find(attempt.generation);
    if (attempt.publishing || members == c.state.past_members.end() || int(members->second.size()) != attempt.world_size || attempt.world_size < 2) continue;
    const auto dead = [&](const proto::Member& member) {
      const auto worker = c.state.workers.find(member.worker_id);
      return worker == c.state.workers.end() || worker->second.incarnation != member.incarnation || worker->second.state == WorkerState::kGone;
    };
    for (Rank rank = 0; rank < attempt.world_size; ++rank) {
      const proto::Member &owner = members->second[size_t(rank)], &holder = members->second[size_t((rank + attempt.world_size - 1) % attempt.world_size)];
      if (attempt.files.contains(rank) || attempt.asked.contains(rank) || !dead(owner) || dead(holder)) continue;
      attempt.asked.insert(rank);
      c.log("info", "checkpoint " + std::to_string(attempt.step) + ": " + owner.worker_id + " is gone with its share, " + holder.worker_id + " writes its copy of it");
      c.send(c.state.workers[holder.worker_id].peer, proto::WriteShare{attempt.generation, attempt.step, rank});
    }
  }
}

void on_checkpoint_failed(Context& c, const proto::CheckpointFailed& failed) {
  c.alert("error", "checkpoint " + std::to_string(failed.step) + " failed: " + failed.reason + "; training goes on");
  if (c.state.stop_boundary == failed.step) finish(c, RunState::kFailed, exit_codes::kIo, "the last checkpoint could not be written: " + failed.reason);
}

void on_publish_done(Context& c, const PublishDone& done) {
  State& s = c.state;
  s.attempts.erase(done.attempt);
  if (!done.entry.ok) return on_checkpoint_failed(c, {{}, done.entry.step, done.entry.reason});
  CheckpointEntry entry = done.entry;
  entry.published_at = c.now;
  s.checkpoints[entry.step] = entry;
  std::erase_if(s.attempts, [&](const auto& a) { return a.second.step < entry.step; });
  c.log("info", "checkpoint " + std::to_string(entry.step) + " published");
  for (const auto& [id, worker] : s.workers)
    if (worker.welcomed && worker.state != WorkerState::kGone) c.send(worker.peer, proto::CheckpointPublished{entry.step, entry.path});
  retire_checkpoints(c);
}

void finish(Context& c, RunState state, int exit_code, const std::string& reason) {
  State& s = c.state;
  if (s.finished) return;
  c.set_run_state(state, reason);
  if (exit_code != 0 && exit_code != exit_codes::kDrained) c.alert("error", reason);
  s.finished = true;
  const proto::Shutdown shutdown{reason, exit_code};
  for (const auto& [id, worker] : s.workers)
    if (worker.state != WorkerState::kGone) c.send(worker.peer, shutdown);
  for (const auto& [name, daemon] : s.daemons) c.send(daemon.peer, shutdown);
  for (const auto& [name, loader] : s.loaders) c.send(loader.peer, shutdown);
  c.effects.push_back(Finish{exit_code, reason});
}

void finish_if_done(Context& c) {
  State& s = c.state;
  const Step boundary = *s.stop_boundary;
  const auto checkpoint = s.checkpoints.find(boundary);
  if (boundary > 0 && (checkpoint == s.checkpoints.end() || !checkpoint->second.ok)) return;
  if (s.committed < boundary) return;  // the last StepDone is on its way
  if (checkpoint != s.checkpoints.end()) s.last_state_digest = checkpoint->second.state_digest;
  if (boundary >= s.length.total_steps) return finish(c, RunState::kSucceeded, exit_codes::kDone, "all " + std::to_string(s.length.total_steps) + " steps are done");
  if (s.stop_asked) return finish(c, RunState::kCancelled, exit_codes::kDrained, s.stop_reason + "; stopped after step " + std::to_string(boundary) + " with a checkpoint");
  finish(c, RunState::kPaused, exit_codes::kDone, "stopped after " + std::to_string(boundary) + " steps as asked");
}

}  // namespace tessera::coordinator
