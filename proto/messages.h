// Every message between Tessera's processes, as plain structs. tessera.proto is the wire form, codec.h converts.
//
// Who says what to whom (C coordinator, D node daemon, T trainer, L loader, M tessera-model):
//   T->C TrainerHello TrainerReady WorldStarted WorldFault Sealed StepDone TrainerStatus CheckpointFile CheckpointFailed Goodbye
//   C->T TrainerWelcome WorldStart WorldStop WorldDirective StepDoneAck CheckpointPublished WriteShare Refused Shutdown
//   D->C DaemonHello DaemonStatus TrainerExited TrainerFenced Goodbye       C->D DaemonWelcome FenceTrainer Refused Shutdown
//   L->C LoaderHello LoaderDataset LoaderStatus Goodbye                     C->L LoaderWelcome ShardAssignment Refused Shutdown
//   C->T also ShardAssignment (where to ask for which tile first; locality only, never correctness)
//   T->L TileRequest TileCancel                                             L->T TileHeader TileFrame TileError
//   M->L SampleRequest                                                      L->M SampleTile (pixels follow as a raw part) TileError
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/digest.h"
#include "common/hash.h"
#include "common/ids.h"

namespace tessera::proto {

// ---- general ----

// The receiver does not accept the sender; the sender prints the reason and exits with the code.
struct Refused {
  std::string reason;
  int32_t exit_code = 0;
};
// Finish what is in flight and exit with the code.
struct Shutdown {
  std::string reason;
  int32_t exit_code = 0;
};
// Last word of a peer that leaves on purpose.
struct Goodbye {
  std::string reason;
  int32_t exit_code = 0;
};
// To a peer that a restarted coordinator does not know: say hello again.
struct Reintroduce {};
struct BuildInfo {
  std::string version;
  std::string commit;
  uint32_t protocol = 0;
};

// ---- node daemon ----

struct DeviceSlot {
  WorkerId worker_id;
  std::string device;  // "cpu", "cuda:0"
};
struct DaemonHello {
  std::string host;
  BuildInfo build;
  int64_t pid = 0;
  std::vector<DeviceSlot> slots;
};
struct DaemonWelcome {
  std::string run_id;
  std::string run_dir;  // for logs, when this host sees it
  std::string function_yaml;
  std::string operation_yaml;
};
struct DaemonStatus {  // heartbeat, every 200 ms
  std::vector<WorkerId> running;
};
struct TrainerExited {
  WorkerId worker_id;
  uint64_t incarnation = 0;  // of the trainer
  int32_t exit_code = 0;     // -1 when killed by a signal
  int32_t signal = 0;
  std::string cause;         // "killed by SIGKILL (out of memory: oom_kill rose)", "exit code 74: disk full"
  bool will_restart = false;
};
// Kill that trainer and confirm its death (pidfd) with TrainerFenced; the daemon then starts a new one.
struct FenceTrainer {
  WorkerId worker_id;
  uint64_t incarnation = 0;
  std::string reason;
};
struct TrainerFenced {
  WorkerId worker_id;
  uint64_t incarnation = 0;
};

// ---- trainer and world ----

struct TrainerHello {
  WorkerId worker_id;
  std::string host;
  BuildInfo build;
  int64_t pid = 0;
  std::string device;          // "cpu", "cuda:0"
  std::string numerics_class;  // equal strings promise equal bits (DESIGN section 1)
  std::string mesh_address;    // "host:port" of the trainers' own TCP mesh
  uint64_t highest_term = 0;   // largest term ever obeyed
  Generation generation;       // of the world it is in now ({0,0}: none): a restarted coordinator adopts it
  Step applied = -1;           // updates applied, -1: no state
};
struct TrainerWelcome {
  std::string run_id;
  std::string run_dir;
  std::string lineage;
  std::string function_yaml;
  std::string operation_yaml;
  std::string checkpoint_root;
  int64_t sample_count = 0;
  int64_t steps_per_epoch = 0;
  int64_t total_steps = 0;
  int64_t warmup_steps = 0;
};
// Warmed up (device, kernels, one tile evaluated): may be a member of a world.
struct TrainerReady {};

struct Member {
  WorkerId worker_id;
  uint64_t incarnation = 0;
  Rank rank = 0;
  std::string mesh_address;
};
enum class StateSource : int32_t {
  kInitial = 0,     // state[0] from the seed
  kCheckpoint = 1,  // every joiner loads checkpoint_path
  kPeer = 2,        // survivors hold it; joiners receive it from source_rank over the mesh
};
// Begin a generation. Survivors (members that hold state) first bring themselves to start_step: those that sealed with
// prepared = start_step roll forward by applying. Then the mesh is connected, joiners get the state, digests are
// compared, WorldStarted is sent, and step start_step begins.
// To who was in the generation before and has its list, only the changes are sent: a list of a thousand members to each of a
// thousand would be the longest part of a world change.
struct WorldStart {
  Generation generation;
  std::string lineage;
  std::vector<Member> members;  // by rank; with `base`, those that it lacks or that are new processes, by worker id
  Step start_step = 0;          // state[start_step] is what everybody must hold
  StateSource source = StateSource::kInitial;
  std::string checkpoint_path;
  Rank source_rank = -1;
  std::optional<StateDigest> expected_digest;  // of state[start_step], when the ledger or manifest knows it
  Step stop_after = -1;                        // finish once state[stop_after] is reached; -1: total_steps
  std::optional<Generation> base;              // members are these changes to that generation's
  std::vector<WorkerId> removed;               // with `base`: its members that are none now
};
// The changes that make `full` (its members sorted by worker id) of the members of generation `base`.
WorldStart shorten(const WorldStart& full, const Generation& base, const std::vector<Member>& base_members);
// The full form again: members by worker id, ranks in that order.
WorldStart expand(WorldStart shortened, std::vector<Member> base_members);

struct WorldStarted {
  Generation generation;
  Step step = 0;
  StateDigest state_digest;
};
// A rank's communicator broke or a vote did not arrive or differed; the world must be rebuilt.
struct WorldFault {
  Generation generation;
  Step step = 0;
  std::string reason;
  Rank suspect = -1;
  bool digests_differ = false;
  bool bad_checkpoint = false;  // the checkpoint that WorldStart named cannot be read: take an older one
};
struct WorldStop {
  Generation generation;
  std::string reason;
};
// Answer to WorldStop: this rank never votes or applies in that generation again.
struct Sealed {
  Generation generation;
  Step applied = 0;       // state[applied] is whole here
  bool prepared = false;  // holds the whole gradient of step `applied` and may roll forward to applied + 1
  StateDigest state_digest;  // of state[applied]
  StateDigest gradient_digest;  // when prepared
};
// To rank 0, whose votes carry it to all: stop after a boundary, or snapshot at one.
struct WorldDirective {
  Generation generation;
  Step stop_after = -1;   // -1: not asked; the world stops once state[B] is reached, B = max(stop_after, next boundary)
  bool checkpoint = false;  // snapshot at the next boundary
  std::string reason;
};

struct TimeSplit {  // seconds of one step
  double data = 0, compute = 0, communication = 0, checkpoint = 0, other = 0;
  double total() const { return data + compute + communication + checkpoint + other; }
};
struct StepDone {
  Generation generation;
  std::string lineage;
  Step step = 0;  // the step evaluated: it made state[step + 1]
  double loss = 0;
  double lr = 0, weight_decay = 0, ema = 0;
  double gradient_norm = 0;
  bool skipped = false;  // non-finite gradient
  int32_t context_length = 0;  // of the step's first mask group
  StateDigest batch_digest;
  StateDigest gradient_digest;
  StateDigest state_digest;  // of state[step]: the weights this step used (all ranks agreed)
  int64_t images = 0;
  TimeSplit split;
  double unix_time = 0;
  double effective_rank = 0;  // of the target features of one tile; 0: not measured at this step
  std::vector<SampleId> grey_samples;  // undecodable samples replaced by grey
};
struct StepDoneAck {
  Step step = 0;  // everything up to and including it is durable
};
enum class Phase : int32_t { kStarting = 0, kWarmUp = 1, kReady = 2, kConnecting = 3, kTransfer = 4, kData = 5, kEvaluate = 6, kReduce = 7, kVote = 8, kApply = 9, kSnapshot = 10, kSealed = 11, kFinished = 12 };
struct TrainerStatus {  // heartbeat, every 200 ms, from the control thread
  Generation generation;
  Rank rank = -1;
  Step step = 0;
  Phase phase = Phase::kStarting;
  double phase_seconds = 0;
  double step_seconds_p50 = 0;
  int64_t memory_bytes = 0;
  double step_seconds_max = 0;  // of the recent steps
};

// ---- checkpoints ----

// One rank's file of an attempt is written, synced and hashed.
struct CheckpointFile {
  Generation generation;
  Step step = 0;
  std::string attempt;  // folder name below the checkpoint root: ".attempt-<term>-<number>-<step>"
  Rank rank = 0;
  int32_t world_size = 0;
  std::string file;  // "state-00000-of-00002.safetensors"
  int64_t size_bytes = 0;
  Hash128 hash;
  std::string manifest_part;  // JSON: what the manifest holds of this rank (tensors); rank 0's has digests and scalars too
};
struct CheckpointFailed {
  Generation generation;
  Step step = 0;
  std::string reason;
};
// The checkpoint is whole under its name: shares that are held for it may go.
struct CheckpointPublished {
  Step step = 0;
  std::string path;
};

// The rank that wrote this share of the generation's snapshot is gone before it said so; the receiver holds a copy (every
// share is held by two ranks until the checkpoint is published) and writes it in its name.
struct WriteShare {
  Generation generation;
  Step step = 0;
  Rank rank = 0;
};

// ---- data plane ----

struct LoaderHello {
  std::string name;
  std::string host;
  BuildInfo build;
  int64_t pid = 0;
  std::string data_address;  // "tcp://host:port" of its ROUTER
};
struct LoaderWelcome {
  std::string run_id;
  std::string run_dir;
  std::string function_yaml;
  std::string data_path;
  std::string manifest_folder;  // where manifests of read-only data folders live
  int64_t loader_threads = 1;
  std::string operation_yaml;   // of print_operation: cache, retries, transport
};
struct LoaderDataset {
  Hash128 manifest_digest;
  int64_t sample_count = 0;
  int64_t shard_count = 0;
  std::string decoder_fingerprint;
  std::string error;  // not empty: the dataset cannot be served, with the reason
  int32_t exit_code = 0;
};
struct LoaderStatus {  // heartbeat, every 200 ms
  double images_per_second = 0;
  int64_t images_total = 0;
  int32_t queue = 0;  // tiles asked for and not yet sent
  double read_seconds = 0, decode_seconds = 0, resize_seconds = 0, mask_seconds = 0, send_seconds = 0, idle_seconds = 0;  // totals
  double blocked_seconds = 0;  // wall time in which requests waited only because trainers had not taken what was made
  int64_t unsent_bytes = 0;    // being made, or made and not yet taken
  int64_t shared_tiles = 0;    // that went by shared memory
  int64_t bad_samples = 0;
  std::string last_bad;
};
struct LoaderShare {
  std::string name;
  std::string data_address;
  int64_t first_shard = 0, last_shard = 0;  // half-open
};
struct ShardAssignment {
  int64_t version = 0;
  std::vector<LoaderShare> loaders;  // by name
};

struct CropBox {
  int32_t top = 0, left = 0, height = 0, width = 0;
  bool flip = false;
};
// Where the pixels of a tile lie: a memfd of the loader's process (common/shared_memory.h). pid 0: they come in frames.
struct SharedPixels {
  int64_t pid = 0;
  int32_t fd = 0;
  uint64_t nonce = 0;  // stands in the memory itself: another process of that pid is told apart
};
// credit_bytes: pixels the trainer has room for; the loader never sends more than it was given credit for. The request
// carries a whole tile's credit out of the trainer's budget (operation.host_prefetch_bytes).
struct TileRequest {
  uint64_t request_id = 0;
  Step step = 0;
  TileIndex tile = 0;
  int64_t credit_bytes = 0;
  std::string shared_host;  // host_identity() of a trainer that takes shared memory; empty: frames
};
// Forgets a request; of a tile that came by shared memory: its memory may be used again.
struct TileCancel {
  uint64_t request_id = 0;
};
// Mask lists are ascending patch indices (row * grid + column), image-major: context j of image i is
// contexts[j][i * context_length ... ); all of one tile have equal length.
struct TileHeader {
  uint64_t request_id = 0;
  Step step = 0;
  TileIndex tile = 0;
  int64_t epoch = 0;
  int32_t image_size = 0;
  int32_t grid = 0;
  int32_t context_length = 0;
  int32_t target_length = 0;
  std::vector<SampleId> sample_ids;
  std::vector<CropBox> crops;
  std::vector<std::vector<uint16_t>> contexts;  // [contexts][images * context_length]
  std::vector<std::vector<uint16_t>> targets;   // [targets][images * target_length]
  std::vector<SampleId> grey_samples;
  int64_t pixel_bytes = 0;  // images * S * S * 3, uint8 NHWC
  int32_t frame_count = 0;
  Hash128 pixel_hash;
  Hash128 digest;  // tile_digest(header, pixel_hash)
  SharedPixels shared;
};
// The pixels of the frame are the message's raw part.
struct TileFrame {
  uint64_t request_id = 0;
  int32_t index = 0;
  int64_t offset = 0;
};
struct TileError {
  uint64_t request_id = 0;
  std::string reason;
  int32_t exit_code = 0;  // 0: ask another loader or again; otherwise the run must stop with it
};
// Evaluation: whole images, resized to image_size without crop.
struct SampleRequest {
  uint64_t request_id = 0;
  std::vector<SampleId> sample_ids;
  int32_t image_size = 0;
};
struct SampleTile {
  uint64_t request_id = 0;
  std::vector<SampleId> sample_ids;
  std::vector<std::string> keys;
  std::vector<std::string> label_names;       // "class", "count", "distance"; empty when the data has none
  std::vector<double> labels;                 // sample-major, NaN where missing
  Hash128 pixel_hash;
};
// What a loader says of its dataset to a tool that connects (asked with DatasetRequest).
struct DatasetRequest {};
struct DatasetInfo {
  Hash128 manifest_digest;
  int64_t sample_count = 0;
  std::vector<std::string> label_names;
  std::vector<std::string> class_names;  // may be empty
};

using Payload = std::variant<std::monostate, Refused, Shutdown, Goodbye, Reintroduce, DaemonHello, DaemonWelcome, DaemonStatus, TrainerExited,
                             FenceTrainer, TrainerFenced, TrainerHello, TrainerWelcome, TrainerReady, WorldStart, WorldStarted,
                             WorldFault, WorldStop, Sealed, WorldDirective, StepDone, StepDoneAck, TrainerStatus, CheckpointFile,
                             CheckpointFailed, CheckpointPublished, LoaderHello, LoaderWelcome, LoaderDataset, LoaderStatus,
                             ShardAssignment, TileRequest, TileCancel, TileHeader, TileFrame, TileError, SampleRequest, SampleTile,
                             DatasetRequest, DatasetInfo, WriteShare>;

// Header of every message. Foreign ones (other protocol, cluster or run), oversized and malformed ones are dropped and
// counted by the channel.
struct Envelope {
  uint32_t protocol = 0;
  std::string cluster_id;
  std::string run_id;       // empty until welcomed
  std::string sender;       // worker id, "daemon:<host>", loader name, "coordinator"
  uint64_t incarnation = 0; // of the sender: random per process start
  uint64_t sequence = 0;
  Payload payload;
};

// XXH3-128 over the header's fields (all but request_id, hashes and frames), then the pixel hash. The loader sends it,
// the trainer computes it again from what it received.
Hash128 tile_digest(const TileHeader& header);

}  // namespace tessera::proto
