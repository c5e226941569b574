#include "tests/sim/cluster.h"

#include <algorithm>
#include <functional>

#include "common/hash.h"
#include "common/version.h"

namespace tessera::sim {
namespace {

using namespace tessera::coordinator;
namespace p = tessera::proto;

// What state[k] is: a function of k alone when everybody keeps the rules.
StateDigest digest_of(Step step, uint64_t taint) { return {mix64(uint64_t(step) + 1) ^ taint, mix64(uint64_t(step) + 77) ^ taint}; }

struct Trainer {
  WorkerId id;
  bool alive = false, hung = false, ready = false;
  Millis asleep_until = 0;  // stopped, swapped out: acts later
  Millis slow_until = 0;
  bool welcomed = false;
  uint64_t incarnation = 0;
  Step applied = -1;
  bool prepared = false;
  uint64_t taint = 0;  // not 0: its state is not what the function says
  std::optional<p::WorldStart> world;
  bool running = false;  // past the start of its world
  Rank rank = -1;
  std::set<WorkerId> votes;      // for step `applied` of the world
  std::set<WorkerId> evaluated;  // peers whose share of step `applied` is here
  std::vector<p::StepDone> reports;
  Generation newest, highest;  // highest: whatever it believes
  p::Phase phase = p::Phase::kStarting;
  Millis phase_since = 0;
  Generation members_of;
  std::vector<p::Member> members;
  std::optional<p::CheckpointFile> held;  // the next rank's share of the newest snapshot
  bool finished = false;
};

class Cluster {
 public:
  explicit Cluster(const Options& o) : o_(o) {
    config_.function.batch.tile_size = 1, config_.function.batch.tiles = 4;
    config_.function.steps = o.steps;
    config_.operation.checkpoint.every_steps = 7;
    config_.run_id = "sim", config_.lineage = "sim";
    for (int i = 0; i < o.workers; ++i) trainers_["node" + std::to_string(i) + "/0"].id = "node" + std::to_string(i) + "/0";
  }

  Outcome run() {
    start_coordinator();
    for (auto& [id, trainer] : trainers_) start_daemon(id);
    at(1, [this] { loader_hello(); });
    const std::vector<Fault> faults = o_.faults ? *o_.faults : draw_faults(o_);
    for (const Fault& fault : faults) at(fault.at, [this, fault] { strike(fault); });
    while (!queue_.empty() && out_.ok && !done_) {
      auto [when, order, action] = queue_.top();
      queue_.pop();
      now_ = when;
      ++out_.events;
      if (now_ > o_.deadline_ms) {
        violate("liveness: not finished " + std::to_string((now_ - o_.heal_at_ms) / 1000) + " s after the last fault; state " + run_state_name(state_.run_state) + ": " + state_.reason);
        break;
      }
      action();
    }
    if (out_.ok && !done_) violate("liveness: nothing more happens");
    if (out_.ok) check_end();
    out_.committed = state_.committed, out_.generations = int64_t(granted_.size()), out_.finished_at = now_;
    return out_;
  }

 private:
  using Action = std::function<void()>;
  struct Later {
    Millis when;
    uint64_t order;
    Action action;
    bool operator<(const Later& other) const { return when != other.when ? when > other.when : order > other.order; }
  };

  // Keyed: what one link or trainer draws does not depend on what the others do, so that a trace without one fault is
  // mostly the same trace (shrink).
  int64_t draw(const std::string& key, int64_t low, int64_t high) {
    uint64_t& count = drawn_[key];
    const uint64_t word = mix64(mix64(o_.seed * 7919 + 17) ^ hash64_bytes(key) ^ mix64(++count));
    return low + int64_t(word % uint64_t(high - low + 1));
  }
  bool chance(const std::string& key, double probability) { return double(draw(key, 0, 999999)) < probability * 1e6; }
  void at(Millis delay, Action action) { queue_.push({now_ + delay, order_++, std::move(action)}); }
  void say(const std::string& text) {
    if (o_.trace) out_.trace.push_back(std::to_string(now_) + " ms: " + text);
  }
  void violate(const std::string& text) {
    if (out_.ok) out_.violation = text;
    out_.ok = false;
    say("VIOLATION: " + text);
  }
  // In order per link: never before what was sent on it earlier.
  Millis link_delay(const std::string& link) {
    const Millis arrival = std::max(now_ + draw(link, 1, 30), link_last_[link]);
    link_last_[link] = arrival;
    return arrival - now_;
  }
  static std::string node_of(const std::string& name) { return name.starts_with("daemon:") ? name.substr(7) : name; }
  // A message between a node and the coordinator: delayed, and in trouble lost, doubled or out of order.
  void control(const std::string& node, const std::string& link, bool to_coordinator, Action action) {
    const auto within = [&](const std::map<std::string, Millis>& until) {
      const auto it = until.find(node);
      return it != until.end() && now_ < it->second;
    };
    if (within(to_coordinator ? cut_to_ : cut_from_)) return;
    if (!within(lossy_)) return at(link_delay(link), std::move(action));
    const int64_t fate = draw(link + "?", 0, 99);
    if (fate < 25) return;
    if (fate < 45) at(draw(link + "?", 1, 500), action);  // late, behind others that were sent after it
    if (fate < 45 && fate >= 35) return;
    at(link_delay(link), std::move(action));
  }

  // ---- coordinator ----

  void start_coordinator() {
    coordinator_up_ = true;
    ++coordinator_life_;
    state_ = State{};
    told_.clear();
    if (o_.bug != Bug::kReuseTerm || term_ == 0) ++term_;
    config_.term = term_;
    for (const auto& [step, record] : stored_ledger_) {
      state_.ledger[step] = record;
      state_.batch_chain = chain(state_.batch_chain, record.batch);
      ++state_.committed;
    }
    state_.checkpoints = stored_checkpoints_;
    state_.generation_count = int64_t(granted_.size());
    if (stored_dataset_) {
      state_.dataset = stored_dataset_;
      state_.length = *run_length(config_.function, stored_dataset_->sample_count);
      state_.run_state = RunState::kStarting;
    }
    if (!stored_world_.empty()) {
      adopt_world(state_, *parse_world(stored_world_), coordinator_now());
    }
    const int life = coordinator_life_;
    at(50, [this, life] { tick(life); });
    say("coordinator starts, term " + std::to_string(term_));
  }
  void tick(int life) {
    if (!coordinator_up_ || life != coordinator_life_ || done_) return;
    feed(TickEvent{});
    at(50, [this, life] { tick(life); });
  }
  void feed(const Event& event) {
    if (!coordinator_up_ || done_) return;
    if (const auto* message = std::get_if<MessageEvent>(&event))  // what the coordinator has been told about a member's state
      if (const auto* sealed = std::get_if<p::Sealed>(&message->payload)) told_[message->sender] = {sealed->generation, message->incarnation};
    Effects effects = coordinator::step(state_, config_, event, coordinator_now());
    if (o_.bug == Bug::kAnswerBeforeStore) std::stable_partition(effects.begin(), effects.end(), [](const Effect& e) { return std::holds_alternative<Send>(e); });
    for (const Effect& effect : effects) {
      if (crash_after_ == 0) return crash_coordinator();
      if (crash_after_ > 0) --crash_after_;
      carry_out(effect);
    }
  }
  Millis coordinator_now() const { return now_ + clock_ahead_; }
  void crash_coordinator() {
    say("coordinator dies");
    crash_after_ = -1;
    coordinator_up_ = false;
    ++coordinator_life_;
    at(draw("coordinator", 100, 4000), [this] { start_coordinator(); });
  }
  void to_coordinator(const std::string& name, uint64_t incarnation, p::Payload payload) {
    const std::string peer = name + "#" + std::to_string(incarnation);
    control(node_of(name), peer + ">c", true, [this, peer, name, incarnation, payload] { feed(MessageEvent{peer, name, incarnation, payload}); });
  }

  void carry_out(const Effect& effect) {
    if (const auto* send = std::get_if<Send>(&effect)) {
      if (const auto* start = std::get_if<p::WorldStart>(&send->payload)) check_grant(*start);
      if (const auto* ack = std::get_if<p::StepDoneAck>(&send->payload); ack && ack->step >= 0 && !stored_ledger_.contains(ack->step)) violate("step " + std::to_string(ack->step) + " is acknowledged and not stored");
      const std::string peer = send->peer;
      control(node_of(peer.substr(0, peer.rfind('#'))), "c>" + peer, false, [this, peer, payload = send->payload] { deliver(peer, payload); });
    } else if (const auto* stored = std::get_if<StoreStep>(&effect)) {
      const StepRecord record{stored->done.batch_digest, stored->done.state_digest};
      if (const auto it = stored_ledger_.find(stored->done.step); it != stored_ledger_.end() && it->second != record) violate("a committed step changed: " + std::to_string(stored->done.step));
      if (record.state != digest_of(stored->done.step, 0)) violate("step " + std::to_string(stored->done.step) + " was committed from a state that is not the function's");
      stored_ledger_[stored->done.step] = record;
      if (stored->done.generation >= rewound_by_) rewound_ = false;
    } else if (const auto* meta = std::get_if<StoreMeta>(&effect)) {
      if (meta->key == "world") stored_world_ = meta->value;
      if (state_.dataset) stored_dataset_ = state_.dataset;
    } else if (const auto* publish = std::get_if<PublishCheckpoint>(&effect)) {
      CheckpointEntry entry;
      entry.step = publish->step, entry.path = "step-" + std::to_string(publish->step), entry.state_digest = digest_of(publish->step, 0);
      for (const auto& file : publish->files)
        if (!written_.contains(file.attempt + "/" + std::to_string(file.rank))) violate("checkpoint " + std::to_string(publish->step) + " is published without the share of rank " + std::to_string(file.rank));
      const int life = coordinator_life_;
      at(draw("disk", 1, 20), [this, entry, life, attempt = publish->attempt] {
        if (life != coordinator_life_ && chance("disk", 0.5)) return;  // it died before the rename, or behind it
        stored_checkpoints_[entry.step] = entry;
        feed(PublishDone{attempt, entry});
      });
    } else if (const auto* remove = std::get_if<RemoveCheckpoint>(&effect)) {
      stored_checkpoints_.erase(remove->step);
    } else if (const auto* log = std::get_if<LogEvent>(&effect)) {
      say("coordinator: " + log->text);
      if (log->text.find("nobody is left who can report it") != std::string::npos) check_rewind();
    } else if (const auto* finish = std::get_if<Finish>(&effect)) {
      done_ = true;
      exit_code_ = finish->exit_code;
      say("finished with " + std::to_string(finish->exit_code) + ": " + finish->reason);
    }
  }

  // A generation names one membership ever; state never starts behind a committed step unless it comes from a checkpoint.
  static std::string members_text(const p::WorldStart& start) {
    std::string members;
    for (const auto& m : start.members) members += m.worker_id + "#" + std::to_string(m.incarnation) + "=" + std::to_string(m.rank) + " ";
    return members;
  }
  void check_grant(const p::WorldStart& sent) {
    p::WorldStart start = sent;
    start.members = state_.world.members, start.base.reset(), start.removed.clear();  // in whichever form it is sent
    const std::string members = members_text(start), text = members + "@" + std::to_string(start.start_step);
    full_[start.generation] = members;
    const auto [it, fresh] = granted_.emplace(start.generation, text);
    if (fresh) previous_ = latest_, latest_ = start.generation;
    if (!fresh && it->second != text) violate("generation " + to_string(start.generation) + " was granted twice: " + it->second + " and " + text);
    if (!fresh) return;  // said again
    if (start.source != p::StateSource::kPeer && start.start_step < state_.committed) rewound_ = true, rewound_by_ = start.generation;  // until its steps are committed
    // All who held a newer state are gone, and a member holds an older one: as good as a checkpoint.
    const bool newer = std::any_of(start.members.begin(), start.members.end(), [&](const auto& m) {
      const Trainer* t = find(m.worker_id, m.incarnation);
      return t && !t->hung && t->applied > start.start_step;
    });
    if (start.source == p::StateSource::kPeer && start.start_step < state_.committed && !newer) rewound_ = true, rewound_by_ = start.generation;
    if (start.source == p::StateSource::kPeer && start.start_step < state_.committed && !rewound_) violate("the source of state is behind committed step " + std::to_string(state_.committed - 1));
    if (std::exchange(rewinds_, false)) return;
    // What a member of the generation before said that it holds is not thrown away.
    for (const auto& m : start.members) {
      const Trainer& t = trainers_[m.worker_id];
      const auto told = told_.find(m.worker_id);
      const bool known = told != told_.end() && told->second == std::pair{previous_, m.incarnation};
      if (known && t.alive && t.incarnation == m.incarnation && t.applied > start.start_step)
        violate("generation " + to_string(start.generation) + " starts from step " + std::to_string(start.start_step) + ", member " + m.worker_id + " holds state[" + std::to_string(t.applied) + "]");
    }
  }

  // It gives up a state that somebody holds: only when the ledger cannot be filled otherwise.
  void check_rewind() {
    rewinds_ = true;
    for (const auto& [id, t] : trainers_)
      for (const auto& report : t.reports)
        if (t.alive && !t.hung && report.step == state_.committed && now_ > o_.heal_at_ms + 10000) violate("step " + std::to_string(report.step) + " is given up, and " + id + " can report it");
  }

  void check_end() {
    if (exit_code_ != 0) return violate("the run ended with exit code " + std::to_string(exit_code_) + ": " + state_.reason);
    for (Step step = 0; step < o_.steps; ++step)
      if (!stored_ledger_.contains(step)) return violate("step " + std::to_string(step) + " is not in the ledger");
    if (int64_t(stored_ledger_.size()) != o_.steps) return violate("the ledger holds steps that do not exist");
  }

  // ---- loader and daemons ----

  void loader_hello() {
    if (done_) return;
    ++loader_life_;
    to_coordinator("loader", uint64_t(loader_life_), p::LoaderHello{"loader", "h", {kVersion, "", kProtocolVersion}, 1, "tcp://x"});
    loader_beat(loader_life_);
  }
  void loader_beat(int life) {
    if (done_ || life != loader_life_) return;
    to_coordinator("loader", uint64_t(life), p::LoaderStatus{});
    at(200, [this, life] { loader_beat(life); });
  }
  static std::string daemon_name(const WorkerId& id) { return "daemon:" + id; }
  void start_daemon(const WorkerId& id) {
    const int life = ++daemon_life_[id];
    daemon_hello(id);
    at(draw(id, 20, 200), [this, id, life] { start_trainer(id, life); });
    daemon_beat(id, life);
  }
  void daemon_hello(const WorkerId& id) { to_coordinator(daemon_name(id), uint64_t(daemon_life_[id]), p::DaemonHello{"h", {kVersion, "", kProtocolVersion}, 1, {{id, "cpu"}}}); }
  void daemon_beat(const WorkerId& id, int life) {
    if (done_ || life != daemon_life_[id]) return;
    to_coordinator(daemon_name(id), uint64_t(life), p::DaemonStatus{});
    at(200, [this, id, life] { daemon_beat(id, life); });
  }

  // ---- trainers ----

  Trainer* find(const WorkerId& id, uint64_t incarnation) {
    Trainer& t = trainers_[id];
    return t.alive && t.incarnation == incarnation ? &t : nullptr;
  }
  // Runs on the trainer after a while, unless it died; one that is asleep acts when it wakes, a hung one never.
  void on_trainer(const Trainer& t, Millis delay, std::function<void(Trainer&)> action) { act(t.id, t.incarnation, now_ < t.slow_until ? 8 * delay : delay, std::move(action)); }
  void act(const WorkerId& id, uint64_t incarnation, Millis delay, std::function<void(Trainer&)> action) {
    at(delay, [this, id, incarnation, action] {
      Trainer* trainer = find(id, incarnation);
      if (!trainer || trainer->hung) return;
      if (now_ < trainer->asleep_until) return act(id, incarnation, trainer->asleep_until - now_, action);
      action(*trainer);
    });
  }
  void enter_phase(Trainer& t, p::Phase phase) { t.phase = phase, t.phase_since = now_; }
  void start_trainer(const WorkerId& id, int daemon_life) {
    if (done_ || daemon_life != daemon_life_[id] || trainers_[id].alive) return;
    Trainer fresh;
    fresh.id = id;
    fresh.alive = true;
    fresh.incarnation = ++incarnations_;
    trainers_[id] = fresh;
    hello(trainers_[id]);
    beat(trainers_[id]);  // until it is welcomed: hellos
  }
  void hello(Trainer& t) {
    p::TrainerHello h{t.id, "h", {kVersion, "", kProtocolVersion}, 1, "cpu", "class", "mesh", 0, {}, t.applied};
    if (t.world && t.running) h.generation = t.world->generation;
    h.highest_term = t.newest.term;
    to_coordinator(t.id, t.incarnation, h);
  }
  void beat(Trainer& t) {
    if (done_) return;
    if (!t.welcomed)
      return on_trainer(t, 1000, [this](Trainer& again) {
        if (again.welcomed) return;  // heartbeats have begun
        hello(again);
        beat(again);
      });
    p::TrainerStatus s;
    if (t.world) s.generation = t.world->generation;
    else if (t.phase == p::Phase::kSealed || t.phase == p::Phase::kFinished) s.generation = t.newest;
    s.step = t.applied, s.phase = t.phase, s.step_seconds_p50 = 0.05, s.step_seconds_max = 0.2;
    s.phase_seconds = double(now_ - t.phase_since) / 1000;
    to_coordinator(t.id, t.incarnation, s);
    for (const auto& report : t.reports) to_coordinator(t.id, t.incarnation, report);  // until acknowledged
    on_trainer(t, 200, [this](Trainer& again) { beat(again); });
  }

  void deliver(const std::string& peer, const p::Payload& payload) {
    const size_t hash = peer.rfind('#');
    if (hash == std::string::npos) return;  // a member that a restarted coordinator has not heard yet
    const std::string name = peer.substr(0, hash);
    const uint64_t incarnation = std::stoull(peer.substr(hash + 1));
    if (name == "loader") {
      if (incarnation != uint64_t(loader_life_)) return;
      if (std::holds_alternative<p::LoaderWelcome>(payload)) to_coordinator("loader", incarnation, p::LoaderDataset{{1, 2}, 400, 4, "f", "", 0});
      if (std::holds_alternative<p::Reintroduce>(payload)) to_coordinator("loader", incarnation, p::LoaderHello{"loader", "h", {kVersion, "", kProtocolVersion}, 1, "tcp://x"});
      return;
    }
    if (name.starts_with("daemon:")) {
      const WorkerId id = name.substr(7);
      if (incarnation != uint64_t(daemon_life_[id])) return;
      if (std::holds_alternative<p::Reintroduce>(payload)) daemon_hello(id);
      if (const auto* fence = std::get_if<p::FenceTrainer>(&payload)) {
        kill_trainer(id, "fenced");  // whatever runs in the slot
        to_coordinator(name, incarnation, p::TrainerFenced{id, fence->incarnation});
      }
      return;
    }
    act(name, incarnation, 0, [this, payload](Trainer& t) { on_message(t, payload); });
  }

  void on_message(Trainer& t, const p::Payload& payload) {
    if (std::holds_alternative<p::Reintroduce>(payload)) return hello(t);
    if (std::holds_alternative<p::TrainerWelcome>(payload)) {
      if (!std::exchange(t.welcomed, true)) beat(t);
      if (t.ready) {
        if (!t.world) to_coordinator(t.id, t.incarnation, p::TrainerReady{});
        return;
      }
      on_trainer(t, draw(t.id, 50, 400), [this](Trainer& x) {
        if (x.ready) return;
        x.ready = true, enter_phase(x, p::Phase::kReady);
        to_coordinator(x.id, x.incarnation, p::TrainerReady{});
      });
    } else if (const auto* start = std::get_if<p::WorldStart>(&payload)) {
      if (start->base && *start->base != t.members_of) return;  // the whole list will come
      const p::WorldStart full = start->base ? p::expand(*start, t.members) : *start;
      if (const auto granted = full_.find(full.generation); granted != full_.end() && granted->second != members_text(full)) violate("generation " + to_string(full.generation) + " has other members for " + t.id);
      t.members_of = full.generation, t.members = full.members;
      enter_world(t, full);
    } else if (const auto* stop = std::get_if<p::WorldStop>(&payload)) {
      if (t.world && stop->generation == t.world->generation) seal(t);
      else if (!t.world && stop->generation == t.newest) to_coordinator(t.id, t.incarnation, p::Sealed{stop->generation, t.applied, t.prepared, digest_of(t.applied, t.taint), {}});
      else if (t.newest < stop->generation) t.newest = stop->generation;  // never entered now
    } else if (const auto* share = std::get_if<p::WriteShare>(&payload)) {
      if (t.held && t.held->generation == share->generation && t.held->step == share->step && t.held->rank == share->rank) write_share(t, *t.held);
    } else if (const auto* directive = std::get_if<p::WorldDirective>(&payload)) {
      if (t.world && t.rank == 0 && directive->generation == t.world->generation) directives_[directive->generation] = t.applied + 2;
    } else if (const auto* ack = std::get_if<p::StepDoneAck>(&payload)) {
      std::erase_if(t.reports, [&](const auto& r) { return r.step <= ack->step; });
    }
  }

  void seal(Trainer& t) {
    to_coordinator(t.id, t.incarnation, p::Sealed{t.world->generation, t.applied, t.prepared, digest_of(t.applied, t.taint), {}});
    t.world.reset(), t.running = false, enter_phase(t, p::Phase::kSealed);
  }
  void fault(Trainer& t, const std::string& reason) {
    if (!t.world) return;
    t.running = false;
    to_coordinator(t.id, t.incarnation, p::WorldFault{t.world->generation, t.applied, reason, -1, false, false});
  }

  void enter_world(Trainer& t, const p::WorldStart& start) {
    if (start.generation <= t.newest && o_.bug != Bug::kForgetGeneration) return;
    if (start.generation < t.highest) violate(t.id + " enters generation " + to_string(start.generation) + " and has been in " + to_string(t.highest));
    t.newest = start.generation, t.highest = std::max(t.highest, t.newest);
    t.world = start;
    t.running = false, t.finished = false;
    enter_phase(t, p::Phase::kConnecting);
    for (const auto& m : start.members)
      if (m.worker_id == t.id) t.rank = m.rank;
    const Generation g = start.generation;
    on_trainer(t, draw(t.id, 10, 80), [this, g, since = now_](Trainer& x) { connect(x, g, since); });
  }
  // The mesh: peers that are gone or cut off do not answer; after fifteen seconds it says so.
  void connect(Trainer& t, const Generation& g, Millis since) {
    if (!t.world || t.world->generation != g) return;
    for (const auto& m : t.world->members) {
      const bool there = find(m.worker_id, m.incarnation) && !mesh_cut(t.id, m.worker_id);
      if (there) continue;
      if (now_ - since > 15000) return fault(t, m.worker_id + " is not reachable");
      return on_trainer(t, 50, [this, g, since](Trainer& x) { connect(x, g, since); });
    }
    bring_state(t);
  }
  bool mesh_cut(const WorkerId& a, const WorkerId& b) const {
    const auto until = [&](const WorkerId& id) {
      const auto it = mesh_cut_.find(id);
      return it == mesh_cut_.end() ? Millis{-1} : it->second;
    };
    return a != b && (now_ < until(a) || now_ < until(b));
  }
  void bring_state(Trainer& t) {
    const p::WorldStart& start = *t.world;
    if (start.source == p::StateSource::kPeer) {
      if (t.applied + 1 == start.start_step && t.prepared) {
        ++t.applied;
        if (o_.bug == Bug::kStaleGradient) t.taint = 1;
      } else if (t.applied != start.start_step) {
        const Trainer& source = trainers_[start.members[size_t(start.source_rank)].worker_id];
        const bool has = source.applied == start.start_step || (source.applied + 1 == start.start_step && source.prepared);
        t.taint = has ? source.taint : 1;
        t.applied = start.start_step;
      }
    } else {
      if (start.source == p::StateSource::kCheckpoint && !stored_checkpoints_.contains(start.start_step)) return fault(t, "the checkpoint is gone");
      t.applied = start.start_step, t.taint = 0;
    }
    t.prepared = false;
    const auto key = std::pair{t.id + to_string(start.generation), t.applied};
    t.votes = early_votes_[key], t.evaluated = early_[key];
    t.running = true;
    to_coordinator(t.id, t.incarnation, p::WorldStarted{start.generation, t.applied, digest_of(t.applied, t.taint)});
    begin_step(t);
  }

  template <typename F>
  void peers(const Trainer& t, F&& action) {
    const Generation g = t.world->generation;
    const Step step = t.applied;
    for (const auto& m : t.world->members) to_peer(m, link_delay(t.id + ">" + m.worker_id), t.id, [g, step, from = t.id, action](Trainer& peer) {
        if (peer.world && peer.world->generation == g) action(peer, from, step);
      });
  }
  // Over a cut link nothing is lost: it comes when the link is whole again.
  void to_peer(const p::Member& m, Millis delay, const WorkerId& from, std::function<void(Trainer&)> action) {
    act(m.worker_id, m.incarnation, delay, [this, m, from, action](Trainer& peer) {
      if (mesh_cut(from, m.worker_id)) return to_peer(m, 50, from, action);
      action(peer);
    });
  }
  Step stop_of(const Trainer& t) {
    const auto it = directives_.find(t.world->generation);
    return it == directives_.end() ? t.world->stop_after : std::min(t.world->stop_after, it->second);
  }
  void begin_step(Trainer& t) {
    if (!t.world || !t.running) return;
    if (t.applied >= stop_of(t)) {
      t.finished = true;
      checkpoint(t);
      seal(t);
      return enter_phase(t, p::Phase::kFinished);
    }
    t.prepared = false;
    enter_phase(t, p::Phase::kEvaluate);
    const Generation g = t.world->generation;
    const Step step = t.applied;
    on_trainer(t, draw(t.id, 10, 60), [this, g, step](Trainer& x) {
      if (!x.world || x.world->generation != g || x.applied != step || !x.running) return;
      enter_phase(x, p::Phase::kReduce);
      peers(x, [this](Trainer& peer, const WorkerId& from, Step s) { on_share(peer, from, s); });
    });
  }
  // The exchange: the gradient is whole here once every member's share is.
  std::map<std::pair<WorkerId, Step>, std::set<WorkerId>> early_;
  void on_share(Trainer& t, const WorkerId& from, Step step) {
    if (step != t.applied || !t.running) {  // not there yet: the mesh holds it
      early_[{t.id + to_string(t.world->generation), step}].insert(from);
      return;
    }
    t.evaluated.insert(from);
    if (t.evaluated.size() < t.world->members.size() || !t.running || t.prepared) return;
    t.prepared = true;
    enter_phase(t, p::Phase::kVote);
    peers(t, [this](Trainer& peer, const WorkerId& who, Step s) { on_vote(peer, who, s); });
    if (o_.bug == Bug::kApplyBeforeAllVotes && chance(t.id, 0.3)) apply(t);
  }
  void on_vote(Trainer& t, const WorkerId& from, Step step) {
    if (step != t.applied || !t.running) {
      early_votes_[{t.id + to_string(t.world->generation), step}].insert(from);
      return;
    }
    t.votes.insert(from);
    if (t.votes.size() == t.world->members.size() && t.prepared && t.running) apply(t);
  }
  std::map<std::pair<WorkerId, Step>, std::set<WorkerId>> early_votes_;
  // If anyone applied step k, every survivor holds the whole gradient of k: that is what roll forward stands on.
  void check_fence(const Trainer& t) {
    for (const auto& m : t.world->members) {
      const Trainer* peer = find(m.worker_id, m.incarnation);
      const bool holds = !peer || peer->applied > t.applied || (peer->applied == t.applied && peer->prepared);
      if (!holds) violate(t.id + " applies step " + std::to_string(t.applied) + ", whose gradient is not whole at " + m.worker_id);
    }
  }
  void apply(Trainer& t) {
    check_fence(t);
    p::StepDone done;
    done.generation = t.world->generation, done.lineage = "sim", done.step = t.applied;
    done.state_digest = digest_of(t.applied, t.taint);
    done.batch_digest = {mix64(uint64_t(t.applied) + 1000), 1};
    t.reports.push_back(done);
    if (t.rank == 0) to_coordinator(t.id, t.incarnation, done);
    ++t.applied;
    t.prepared = false;
    const auto key = std::pair{t.id + to_string(t.world->generation), t.applied};
    t.votes = early_votes_[key], t.evaluated = early_[key];
    if (t.applied % config_.operation.checkpoint.every_steps == 0) checkpoint(t);
    begin_step(t);
    if (t.world && t.running && t.evaluated.size() == t.world->members.size()) on_share(t, t.id, t.applied);
  }
  void checkpoint(Trainer& t) {
    p::CheckpointFile file;
    file.generation = t.world->generation, file.step = t.applied, file.attempt = to_string(t.world->generation) + "-" + std::to_string(t.applied);
    file.rank = t.rank, file.world_size = int32_t(t.world->members.size());
    p::CheckpointFile next = file;
    next.rank = (file.rank + 1) % file.world_size;
    t.held = next;
    write_share(t, file);
  }
  void write_share(Trainer& t, const p::CheckpointFile& file) {
    if (now_ < disk_full_until_ && file.step < o_.steps) return to_coordinator(t.id, t.incarnation, p::CheckpointFailed{file.generation, file.step, "no space left"});
    const auto report = [this, file](Trainer& x) { to_coordinator(x.id, x.incarnation, file); };
    if (o_.bug == Bug::kReportBeforeWrite) on_trainer(t, 0, report);
    on_trainer(t, draw(t.id, 5, 60), [this, file, report](Trainer& x) {
      written_.insert(file.attempt + "/" + std::to_string(file.rank));
      if (o_.bug != Bug::kReportBeforeWrite) report(x);
    });
  }

  // ---- faults ----

  void kill_trainer(const WorkerId& id, const std::string& why) {
    const uint64_t incarnation = trainers_[id].incarnation;
    if (!kill_silently(id, why)) return;
    const int life = daemon_life_[id];
    to_coordinator(daemon_name(id), uint64_t(life), p::TrainerExited{id, incarnation, -1, 9, why, true});
    at(draw(id, 20, 600), [this, id, life] { start_trainer(id, life); });  // with or without a standby
  }
  // Its connections break; nobody is there to say so.
  bool kill_silently(const WorkerId& id, const std::string& why) {
    Trainer& t = trainers_[id];
    if (!t.alive) return false;
    say("trainer " + id + " dies: " + why);
    const std::optional<p::WorldStart> world = t.world;
    t.alive = false;
    if (world)
      for (const auto& m : world->members)
        to_peer(m, draw(id, 1, 30), id, [this, g = world->generation, id](Trainer& peer) {
          if (peer.world && peer.world->generation == g && peer.running) fault(peer, id + " is gone");
        });
    return true;
  }

  void strike(const Fault& fault) {
    if (done_) return;
    ++out_.faults;
    auto it = trainers_.begin();
    std::advance(it, fault.target % int(trainers_.size()));
    const WorkerId id = it->first;
    say("fault: " + describe(fault) + " (" + id + ")");
    switch (fault.kind) {
      case FaultKind::kCrash: return kill_trainer(id, "crash");
      case FaultKind::kHang: it->second.hung = true; return;
      case FaultKind::kPause: it->second.asleep_until = now_ + fault.length; return;
      case FaultKind::kSlow: it->second.slow_until = now_ + fault.length; return;
      case FaultKind::kDaemon:
        ++daemon_life_[id];
        kill_silently(id, "its daemon is gone");
        at(draw(id, 300, 2000), [this, id] { start_daemon(id); });
        return;
      case FaultKind::kLoader:
        ++loader_life_;
        at(draw("loader", 100, 2000), [this] { loader_hello(); });
        return;
      case FaultKind::kCoordinator: if (coordinator_up_) crash_coordinator(); return;
      case FaultKind::kCoordinatorAmidEffects: crash_after_ = fault.target % 5; return;
      case FaultKind::kClock: clock_ahead_ += fault.length; return;
      case FaultKind::kCutToCoordinator: cut_to_[id] = now_ + fault.length; return;
      case FaultKind::kCutFromCoordinator: cut_from_[id] = now_ + fault.length; return;
      case FaultKind::kLossy: lossy_[id] = now_ + fault.length; return;
      case FaultKind::kMesh: mesh_cut_[id] = now_ + fault.length; return;
      case FaultKind::kDiskFull: disk_full_until_ = now_ + fault.length; return;
    }
  }

  const Options o_;
  std::map<std::string, uint64_t> drawn_;
  MachineConfig config_;
  State state_;
  Outcome out_;
  std::priority_queue<Later> queue_;
  uint64_t order_ = 0, incarnations_ = 0, term_ = 0;
  Millis now_ = 0, clock_ahead_ = 0, disk_full_until_ = 0;
  int crash_after_ = -1;  // effects until the coordinator dies; -1: it does not
  std::map<std::string, Millis> cut_to_, cut_from_, lossy_, mesh_cut_;  // by node, until when
  std::set<std::string> written_;  // shares that are on disk: attempt/rank
  bool done_ = false, coordinator_up_ = false, rewound_ = false, rewinds_ = false;
  Generation rewound_by_;
  int exit_code_ = -1, coordinator_life_ = 0, loader_life_ = 0;
  std::map<WorkerId, Trainer> trainers_;
  std::map<WorkerId, int> daemon_life_;
  std::map<std::string, Millis> link_last_;
  std::map<Generation, std::string> granted_, full_;
  Generation latest_, previous_;                               // granted
  std::map<WorkerId, std::pair<Generation, uint64_t>> told_;   // generation that it sealed, incarnation
  std::map<Generation, Step> directives_;
  // What the store holds.
  std::map<Step, StepRecord> stored_ledger_;
  std::map<Step, CheckpointEntry> stored_checkpoints_;
  std::optional<Dataset> stored_dataset_;
  std::string stored_world_;
};

}  // namespace

Outcome simulate(const Options& options) { return Cluster(options).run(); }

}  // namespace tessera::sim
