// How a trainer enters a generation: mesh, state, and the proof that all ranks hold the same.
#include <algorithm>

#include "common/log.h"
#include "worker/model/backend.h"
#include "worker/trainer/session.h"
#include "worker/trainer/trainer.h"

namespace tessera::trainer {
namespace {

constexpr Millis kConnectMs = 15000, kTransferMs = 60000;
constexpr Millis kCollectiveMs = 600000;  // a stuck one is found by the phases (DESIGN section 4); this is the last resort

}  // namespace

Result<Trainer::World> Trainer::make_world(const proto::WorldStart& start) const {
  World world;
  world.start = start;
  world.rank = -1;
  for (const auto& member : start.members)
    if (member.worker_id == options_.worker_id) world.rank = member.rank;
  if (world.rank < 0) return fail(ErrorCode::kRebuildWorld, "[trainer] generation " + to_string(start.generation) + " does not name this worker");
  TESSERA_ASSIGN(world.tiles, collective::tile_range(int(function_.batch.tiles), world.size(), world.rank));
  world.stop_after = start.stop_after < 0 ? welcome_.total_steps : start.stop_after;
  return world;
}

Status Trainer::enter_world(const proto::WorldStart& start) {
  leave_world();
  TESSERA_ASSIGN(world_, make_world(start));
  TESSERA_TRY(connect());
  TESSERA_TRY(bring_state());
  fetcher_->want(state_->step, world_->stop_after, world_->tiles);
  link_.set_position(start.generation, state_->step);
  link_.send(proto::WorldStarted{start.generation, state_->step, state_->digest()});
  log_info("generation {}: rank {} of {}, tiles [{}, {}), from step {}", to_string(start.generation), world_->rank, world_->size(), world_->tiles.begin, world_->tiles.end, state_->step);
  return {};
}

// The target is whole afterwards and nothing of the generation is in flight: what still waits for peers is told not to.
void Trainer::leave_world() {
  if (!world_) return;
  if (world_->collective) world_->collective->cancel();
  world_->exchanger.reset();
  target_on_its_way_ = false;
  world_.reset();
}

Status Trainer::connect() {
  phase(proto::Phase::kConnecting);
  const int tiles = int(function_.batch.tiles);
  if (world_->size() > 1) {
    std::vector<collective::MeshPeer> peers;
    for (const auto& member : world_->start.members) peers.push_back({member.rank, member.mesh_address, member.incarnation});
    TESSERA_ASSIGN(world_->mesh, collective::Mesh::connect(listener_, welcome_.run_id, world_->start.generation, world_->rank, peers, abort_, kConnectMs));
    if (model::is_cuda(options_.device)) {
      TESSERA_ASSIGN(world_->collective, model::backend()->make_collective(*world_->mesh, abort_, tiles, options_.device, kCollectiveMs));
    } else {
      world_->collective = collective::make_host(*world_->mesh, tiles, 0, operation_.transport == "tcp" ? collective::Transport::kTcp : collective::Transport::kAuto, &arena_);
    }
  } else {
    world_->collective = collective::make_single(tiles);
  }
  const bool alone = world_->size() == 1;
  if (options_.wrap_collective) world_->collective = options_.wrap_collective(std::move(world_->collective), world_->start, world_->rank);
  world_->exchanger = std::make_unique<Exchanger>(alone ? Exchanger::Where::kHere : Exchanger::Where::kOwnThread);
  return {};
}

// Brings this rank to state[start_step]: a survivor keeps or rolls forward, everybody else makes, loads or receives it. A
// joiner is invalid until its own digest has been found equal.
Status Trainer::bring_state() {
  phase(proto::Phase::kTransfer);
  const proto::WorldStart& start = world_->start;
  TESSERA_ASSIGN(const Entry entry, plan_entry(start, world_->rank, {state_.has_value(), state_ ? state_->step : -1, prepared_, lineage_}));
  const bool survivor = entry == Entry::kKeep || entry == Entry::kRollForward;
  if (entry == Entry::kRollForward) TESSERA_TRY(roll_forward());
  prepared_ = false;
  writer_->wait_copied();
  if (!survivor) state_.reset();
  Status done;
  if (entry == Entry::kInitial) state_ = model::to_device(model::State::initial(function_), function_.precision, options_.device);
  if (entry == Entry::kLoad) done = load_state(start);
  if (entry == Entry::kReceive) state_ = model::State::empty(function_);  // on the host until it has come
  lineage_ = start.lineage;
  if (done && start.source == proto::StateSource::kPeer) done = transfer_state(entry == Entry::kReceive);
  if (done) done = compare_digests();
  if (!done && !survivor) state_.reset();
  return done;
}

Status Trainer::load_state(const proto::WorldStart& start) {
  auto read = checkpoint::read_checkpoint(start.checkpoint_path, function_);
  if (read && read->step != start.start_step)
    read = fail(ErrorCode::kFixData, start.checkpoint_path + ": holds step " + std::to_string(read->step) + ", expected " + std::to_string(start.start_step));
  if (read && start.expected_digest && read->digest() != *start.expected_digest) read = fail(ErrorCode::kFixData, start.checkpoint_path + ": holds another state than the one that was published");
  if (!read) {
    cause_.bad_checkpoint = true;
    return fail(ErrorCode::kRebuildWorld, read.error().message);
  }
  state_ = model::to_device(std::move(*read), function_.precision, options_.device);
  world_->snapshot_at = state_->step;
  log_info("state[{}] read from {}", state_->step, start.checkpoint_path);
  return {};
}

// The step was voted for in the last generation, and somebody may have applied it: it is applied here too, and described
// for the ledger by everyone who can.
Status Trainer::roll_forward() {
  apply(EmaBy::kThisRank);
  report_step();
  link_.send_kept();
  log_info("rolled forward to step {}", state_->step);
  return {};
}

// Whoever lacks the state gets it from source_rank over the mesh: first each rank says whether it does.
Status Trainer::transfer_state(bool needed) {
  if (world_->size() == 1) return {};
  const size_t world = size_t(world_->size()), self = size_t(world_->rank), source = size_t(world_->start.source_rank);
  struct Need {
    int64_t needs = 0, adam_steps = 0;
  };
  std::vector<Need> needs(world);
  needs[self] = {needed, state_->adam_steps};
  TESSERA_TRY(world_->mesh->all_to_all(needs, kTransferMs));
  // A GPU's state goes by way of the host: NCCL's communicator has just been made, and this is seconds, once.
  const bool sends = self == source && std::any_of(needs.begin(), needs.end(), [](const Need& n) { return n.needs; });
  std::optional<model::State> copy;
  if (sends && model::on_device(state_->weights)) copy = model::to_host(*state_);
  model::State& host = copy ? *copy : *state_;
  std::vector<collective::Piece> pieces;
  for (auto* role : {&host.weights, &host.target, &host.exp_avg, &host.exp_avg_sq})
    for (auto& buffer : *role)
      if (buffer.defined()) pieces.push_back({buffer.mutable_data_ptr(), size_t(buffer.numel()) * sizeof(float)});
  for (auto* table : {&host.target_position, &host.exponents})
    if (table->defined()) pieces.push_back({table->mutable_data_ptr(), table->nbytes()});
  std::vector<std::vector<collective::Piece>> out(world), in(world);
  for (size_t r = 0; r < world; ++r)
    if (self == source && r != self && needs[r].needs) out[r] = pieces;
  if (needs[self].needs) in[source] = pieces;
  TESSERA_TRY(world_->mesh->transfer(std::move(out), std::move(in), kTransferMs));
  if (needs[self].needs) {
    state_->step = world_->start.start_step, state_->adam_steps = needs[source].adam_steps;
    state_ = model::to_device(std::move(*state_), function_.precision, options_.device);
    log_info("received state[{}] from rank {}", state_->step, source);
  }
  return {};
}

// Nobody takes a step before all ranks have proved that they hold the same state, and the one that is expected. No
// deadline: a peer may still be reading its checkpoint; the coordinator watches the phase.
Status Trainer::compare_digests() {
  const StateDigest digest = state_->digest();
  if (world_->start.expected_digest && digest != *world_->start.expected_digest) {
    cause_.digests_differ = true, cause_.suspect = world_->rank;
    return fail(ErrorCode::kRebuildWorld, "state[" + std::to_string(state_->step) + "] on rank " + std::to_string(world_->rank) + " is not the one in the ledger");
  }
  if (world_->size() == 1) return {};
  std::vector<Vote> votes(size_t(world_->size()));
  Vote& mine = votes[size_t(world_->rank)];
  mine.term = world_->start.generation.term, mine.number = world_->start.generation.number;
  mine.step = state_->step;
  mine.state = digest;
  TESSERA_TRY(world_->mesh->all_to_all(votes, 0));
  if (auto agreed = tally(votes); !agreed) {
    cause_.digests_differ = true, cause_.suspect = agreed.error().suspect;
    return fail(ErrorCode::kRebuildWorld, "before step " + std::to_string(state_->step) + ": " + agreed.error().reason);
  }
  return {};
}

}  // namespace tessera::trainer
