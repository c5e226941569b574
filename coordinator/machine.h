// The coordinator's decisions as one pure state machine: no clock, socket, disk, thread, randomness or logging inside.
// The daemon (coordinator/daemon.h) turns messages into events and effects into messages and transactions; the simulator
// (tests/sim) runs the same step().
//
// World changes (DESIGN section 4):
//   planned    WorldDirective -> every member seals at the same boundary -> WorldStart of the next generation
//   unplanned  WorldStop -> Sealed from every live member, silent ones fenced -> decide() -> WorldStart
// decide() is where the source of state is chosen: see world.cpp.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "common/config.h"
#include "proto/messages.h"

namespace tessera::coordinator {

enum class RunState {
  kPending,     // waits for a loader to say what the dataset is
  kStarting,    // waits for workers, or the first world connects
  kRunning,     // steps are being committed
  kRecovering,  // a world broke; the next is being formed
  kPaused,      // stopped where it was told to; can be resumed
  kDraining,    // a planned stop with a checkpoint is on its way
  kSucceeded,   // all steps are done
  kFailed,      // see the reason
  kCancelled,   // stopped by an operator
};
const char* run_state_name(RunState state);  // "RUNNING", as INTERFACES.md

enum class WorkerState { kJoining, kReady, kRunning, kSuspect, kLost, kDraining, kGone, kFenced };
const char* worker_state_name(WorkerState state);

// What does not change during a coordinator's life.
struct MachineConfig {
  FunctionConfig function;
  OperationConfig operation;
  std::string run_id;
  std::string run_dir;
  std::string checkpoint_root;
  std::string lineage;
  uint64_t term = 0;
  // Failure detection. Silence counts from the last message of any kind.
  Millis silence_ms = 2500;       // trainers, daemons, loaders send a heartbeat every 200 ms
  Millis starting_silence_ms = 60000;  // while a trainer loads and warms up
  Millis phase_slack_ms = 1000;   // a phase may take twice the longest recent step and this
  Millis exchange_slack_ms = 5000;  // so may an exchange in which every rank waits for the others
  Millis join_ms = 250;           // a world runs this long before it stops to take others in
  Millis gather_ms = 10000;       // how long a world waits for more workers than min_workers
  Millis start_deadline_ms = 60000;
  Millis seal_deadline_ms = 5000;
  Millis last_checkpoint_ms = 2000;  // for the checkpoint at the end of a run, once all members have said that they wrote it
  Millis isolation_ms = 15000;    // silence of every node at once is the coordinator's own network for this long: training goes on without it
  Millis repeat_ms = 1000;        // what was not answered is said again: a connection that broke may have taken it along
  Millis gap_ms = 5000;           // steps that nobody reports are missing in the ledger for this long: they are evaluated again
  Millis stall_ms = 1000;         // a longer gap between two ticks is the coordinator's own, not anybody's silence
  Millis adopt_ms = 10000;        // after a restart: how long members of a running world may take to come back
};

struct Worker {
  WorkerId id;
  std::string peer;
  std::string daemon;  // name of its node daemon, empty when none is known
  uint64_t incarnation = 0;
  std::string host, device, numerics_class, mesh_address;
  WorkerState state = WorkerState::kJoining;
  std::string reason;
  Rank rank = -1;
  Step step = -1;
  proto::Phase phase = proto::Phase::kStarting;
  Generation generation;   // that its last heartbeat named
  double phase_seconds = 0, step_seconds_p50 = 0, step_seconds_max = 0;
  int64_t memory_bytes = 0;
  Millis last_heard = 0;
  bool welcomed = false, ready = false;
  Millis welcomed_at = 0, fenced_at = 0;
  Millis gone_at = 0;      // when it was last known to be dead
  bool draining = false;   // its node leaves: it joins no more world
  bool dismissed = false;  // it was told to go
  int64_t pid = 0;         // on its host
};

struct Daemon {
  std::string peer, host;
  uint64_t incarnation = 0;
  std::vector<proto::DeviceSlot> slots;
  Millis last_heard = 0;
  Millis known_since = 0;
};

struct Loader {
  std::string peer, address, host;
  uint64_t incarnation = 0;
  bool serving = false;
  std::string reason;
  proto::LoaderStatus status;
  int64_t shard_count = 0;
  Millis last_heard = 0, welcomed_at = 0;
};

struct Dataset {
  Hash128 manifest_digest;
  int64_t sample_count = 0;
  std::string decoder_fingerprint;
};

enum class WorldPhase {
  kNone,      // no generation is active
  kStarting,  // WorldStart was sent; not all have answered
  kRunning,   // all members reported WorldStarted
  kSealing,   // WorldStop was sent; members seal
};

struct World {
  WorldPhase phase = WorldPhase::kNone;
  Generation generation;
  std::vector<proto::Member> members;
  Millis since = 0;
  Step start_step = 0;
  std::map<WorkerId, Rank> ranks;     // of members
  std::set<WorkerId> started;
  std::map<WorkerId, proto::Sealed> sealed;
  std::set<WorkerId> lost;            // members that will not answer
  bool planned_stop = false;          // a directive is on its way
  bool directed_checkpoint = false;   // and asks for a checkpoint
  std::string stop_reason;
  std::optional<proto::WorldStart> start;  // as it was sent; unknown of an adopted world
  Millis said_at = 0;                      // when what is awaited was last asked for
};

struct StepRecord {
  StateDigest batch, state;
  bool operator==(const StepRecord&) const = default;
};

struct CheckpointEntry {
  Step step = 0;
  std::string path;
  int64_t size_bytes = 0;
  StateDigest state_digest;
  bool ok = true;
  std::string reason;
  Millis published_at = 0;
};

struct Attempt {
  Step step = 0;
  int32_t world_size = 0;
  std::map<Rank, proto::CheckpointFile> files;
  Generation generation;
  std::set<Rank> asked;  // shares that the rank holding a copy was asked to write
  bool publishing = false;
};

struct Alert {
  std::string severity, reason;
  Millis since = 0;
};

struct State {
  RunState run_state = RunState::kPending;
  std::string reason = "waiting for a data loader";
  std::optional<Dataset> dataset;
  RunLength length;
  std::string numerics_class;  // of the run's first trainer
  std::map<WorkerId, Worker> workers;
  std::map<std::string, WorkerId> worker_by_peer;
  std::map<std::string, Daemon> daemons;
  std::map<std::string, Loader> loaders;
  Millis last_tick = 0;
  int64_t assignment_version = 0;
  Millis assigned_at = 0;  // when the loaders last heard it
  World world;
  uint64_t next_number = 1;       // generation number within the term
  int64_t generation_count = 0;
  std::map<Step, StepRecord> ledger;
  Hash128 batch_chain;            // over all committed steps, in order
  std::map<Step, Hash128> chain_before;  // what it was before each of the newest steps: of the checkpoint at that step
  Step root = 0;                  // the lineage begins with state[root]: 0, or an imported checkpoint's step
  Millis gap_since = -1;          // reports come from beyond a gap in the ledger since then
  bool said_other_bits = false;   // that steps evaluated again have other bits, which the function allows
  bool rewind = false;            // the next world begins with a checkpoint, whatever the survivors hold
  Step committed = 0;             // steps root .. committed-1 are in the ledger
  StateDigest last_state_digest;
  std::optional<proto::StepDone> last_step;
  Millis last_progress = 0;
  int64_t skipped_total = 0, skipped_in_row = 0;
  bool collapsed = false;         // an alert about it is out
  std::map<Step, CheckpointEntry> checkpoints;
  std::map<std::string, Attempt> attempts;
  std::map<Generation, std::vector<proto::Member>> past_members;  // of the newest generations, for checkpoints that outlive theirs
  std::map<WorkerId, int> wrong_results;      // by worker: digests that were found to differ from the others'
  std::map<std::string, int> faults_at_step;  // "step:cause" -> count
  bool any_draining = false;
  bool stop_asked = false;
  std::string stop_reason;
  bool pause_asked = false;
  std::optional<Step> stop_boundary;  // reached by all, waits for its checkpoint
  Millis gather_since = -1;
  std::vector<Alert> alerts;
  bool finished = false;
};

// ---- events ----

struct MessageEvent {
  std::string peer;    // routing identity
  std::string sender;  // name in the envelope
  uint64_t incarnation = 0;
  proto::Payload payload;
};
struct TickEvent {};
struct StopCommand {
  std::string reason;
};
struct CheckpointCommand {};
struct PauseCommand {
  bool pause = true;  // false: go on
};
struct NoteCommand {  // what somebody who watches the run has to say of it
  std::string severity;  // "info" or "warning"; a warning is an alert
  std::string text;
};
struct PublishDone {
  std::string attempt;
  CheckpointEntry entry;  // ok false: the reason
};
using Event = std::variant<MessageEvent, TickEvent, StopCommand, CheckpointCommand, PauseCommand, NoteCommand, PublishDone>;

// ---- effects, in the order in which they must be carried out ----

struct Send {
  std::string peer;
  proto::Payload payload;
};
struct StoreStep {  // durable before the next effect
  proto::StepDone done;
  Hash128 batch_chain;
};
struct StoreMeta {
  std::string key, value;
};
struct PublishCheckpoint {  // write the manifest, rename, answer with PublishDone
  std::string attempt;
  Step step = 0;
  std::vector<proto::CheckpointFile> files;  // by rank
  Hash128 batch_chain;
};
struct RemoveCheckpoint {
  Step step = 0;
  std::string path;
};
struct LogEvent {
  std::string severity;  // info | warning | error
  std::string text;
};
struct Finish {
  int exit_code = 0;
  std::string reason;
};
using Effect = std::variant<Send, StoreStep, StoreMeta, PublishCheckpoint, RemoveCheckpoint, LogEvent, Finish>;
using Effects = std::vector<Effect>;

// Takes one event. Pure: equal state, config, event and time give equal effects.
Effects step(State& state, const MachineConfig& config, const Event& event, Millis now);

// What a run's bits depend on beside its function, as a sentence; empty when it is nothing (DESIGN section 1, P).
// function.reduction fast gives placement independence up: a step evaluated again by another number of workers may have other bits, and
// nobody is to be blamed for it.
std::string placement_caveat(const FunctionConfig& function);

// The step at which a run of this configuration ends now: total steps, or operation.stop_at_step.
Step final_step(const State& state, const MachineConfig& config);

// For a restarted coordinator: the world that the store remembers, so that a running world is adopted.
std::string print_world(const World& world);
Result<World> parse_world(const std::string& text);
// The remembered world's members are expected back as they were; whoever does not come is fenced.
void adopt_world(State& state, World world, Millis now);

}  // namespace tessera::coordinator
