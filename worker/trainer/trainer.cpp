#include "worker/trainer/trainer.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/clock.h"
#include "common/log.h"
#include "worker/optimizer/update_kernels.h"
#include "worker/trainer/tile.h"

namespace tessera::trainer {
namespace {

constexpr Millis kConnectMs = 15000;
constexpr size_t kStepsKept = 64;
constexpr int64_t kRankEverySteps = 50;  // steps between measurements of the effective rank

}  // namespace

Trainer::Trainer(TrainerOptions options, ControlLink& link, collective::MeshListener& listener, collective::AbortSignal& abort)
    : options_(std::move(options)), link_(link), listener_(listener), abort_(abort) {}

int Trainer::run() {
  for (;;) {
    if (const auto shutdown = link_.shutdown()) {
      if (writer_) writer_->wait_idle();
      link_.drain(2000);
      if (shutdown->exit_code == 0) log_info("done: {}", shutdown->reason);
      else log_error("stopping with exit code {}: {}", shutdown->exit_code, shutdown->reason);
      return shutdown->exit_code;
    }
    auto command = link_.next(200);
    if (!command) continue;
    Status done;
    if (const auto* welcome = std::get_if<proto::TrainerWelcome>(&*command)) {
      done = set_up(*welcome);
    } else if (std::holds_alternative<proto::WorldStop>(*command)) {
      seal(std::get<proto::WorldStop>(*command).reason);
    } else if (const auto* start = std::get_if<proto::WorldStart>(&*command)) {
      digests_differ_ = false, bad_checkpoint_ = false, suspect_ = -1;
      done = enter_world(*start);
      if (done) done = run_world();
      if (!done && done.error().code == ErrorCode::kRebuildWorld) {
        fault(done.error());
        done = {};
      }
    }
    if (!done) {
      log_error("{}", done.error().message);
      link_.send(proto::Goodbye{done.error().message, exit_code_of(done.error())});
      link_.drain(1000);
      return exit_code_of(done.error());
    }
  }
}

Status Trainer::set_up(const proto::TrainerWelcome& welcome) {
  if (engine_) return {};  // a restarted coordinator welcomes us again
  welcome_ = welcome;
  TESSERA_ASSIGN(function_, parse_function(welcome.function_yaml));
  TESSERA_ASSIGN(operation_, parse_operation(welcome.operation_yaml));
  at::set_num_threads(int(operation_.compute_threads));
  TESSERA_ASSIGN(engine_, model::Engine::make(function_, options_.device));
  schedule_.emplace(function_, RunLength{welcome.steps_per_epoch, welcome.total_steps, welcome.warmup_steps});
  fetcher_ = std::make_unique<Fetcher>(function_, operation_.host_prefetch_bytes, options_.worker_id);
  writer_ = std::make_unique<CheckpointWriter>(welcome.checkpoint_root, [this](proto::Payload payload) { link_.send(std::move(payload)); });
  TESSERA_TRY(warm_up());
  link_.report({}, -1, -1, proto::Phase::kReady);
  link_.send(proto::TrainerReady{});
  return {};
}

// One synthetic tile through every kernel, so that the first step takes as long as the others.
Status Trainer::warm_up() {
  link_.report({}, -1, -1, proto::Phase::kWarmUp);
  const int64_t b = function_.batch.tile_size, size = function_.model.image_size, patches = function_.model.grid() * function_.model.grid();
  model::Tile tile;
  tile.pixels = at::zeros({b, size, size, 3}, at::kByte);
  const auto mask = [&](int64_t length) { return at::arange(length, at::kLong).unsqueeze(0).repeat({b, 1}); };
  for (int64_t i = 0; i < function_.masks.contexts; ++i) tile.contexts.push_back(mask(std::max<int64_t>(1, patches / 2)));
  for (int64_t i = 0; i < function_.masks.targets; ++i) tile.targets.push_back(mask(std::max<int64_t>(1, patches / 5)));
  const model::State state = model::State::empty(function_);
  gradient_ = model::make_buffers(state.layout);
  engine_->gradient(state, tile, gradient_, false);
  gradient_ = model::make_buffers(state.layout);
  return {};
}

Status Trainer::enter_world(const proto::WorldStart& start) {
  World world;
  world.start = start;
  world.rank = -1;
  std::vector<collective::MeshPeer> peers;
  for (const auto& member : start.members) {
    peers.push_back({member.rank, member.mesh_address});
    if (member.worker_id == options_.worker_id) world.rank = member.rank;
  }
  if (world.rank < 0) return {};  // not for us
  world.stop_after = start.stop_after < 0 ? welcome_.total_steps : start.stop_after;
  TESSERA_ASSIGN(world.tiles, collective::tile_range(int(function_.batch.tiles), world.size(), world.rank));
  nodes_ = collective::maximal_nodes(int(function_.batch.tiles), world.tiles);
  world_ = std::move(world);
  link_.set_position(start.generation, state_ ? state_->step : -1);
  phase(proto::Phase::kConnecting);
  if (world_->size() > 1) {
    TESSERA_ASSIGN(world_->mesh, collective::Mesh::connect(listener_, welcome_.run_id, start.generation, world_->rank, peers, abort_, kConnectMs));
    world_->collective = collective::make_host(*world_->mesh, int(function_.batch.tiles), 0);
  } else {
    world_->collective = collective::make_single(int(function_.batch.tiles));
  }
  TESSERA_TRY(bring_state(start));
  TESSERA_TRY(compare_digests());
  fetcher_->want(state_->step, world_->stop_after, world_->tiles);
  if (auto assignment = link_.take_assignment()) fetcher_->set_loaders(*assignment);
  const StateDigest digest = state_->digest();
  if (start.expected_digest && digest != *start.expected_digest) {
    digests_differ_ = true;
    return fail(ErrorCode::kRebuildWorld, "state[" + std::to_string(state_->step) + "] here differs from the ledger's");
  }
  link_.send(proto::WorldStarted{start.generation, state_->step, digest});
  log_info("generation {}: rank {} of {}, tiles [{}, {}), from step {}", to_string(start.generation), world_->rank, world_->size(), world_->tiles.begin,
           world_->tiles.end, state_->step);
  return {};
}

// Brings this rank to state[start_step]: a survivor keeps or rolls forward, everybody else loads or receives.
Status Trainer::bring_state(const proto::WorldStart& start) {
  phase(proto::Phase::kTransfer);
  const bool have = state_ && (state_->step == start.start_step || (state_->step + 1 == start.start_step && prepared_));
  if (start.source == proto::StateSource::kPeer) {
    if (have && state_->step != start.start_step) {
      TESSERA_TRY(apply(false));
      log_info("rolled forward to step {}", state_->step);
    }
    if (!have) state_ = model::State::empty(function_);
    if (!have) state_->step = -1;
    TESSERA_TRY(transfer_state());
  } else if (start.source == proto::StateSource::kCheckpoint) {
    auto read = checkpoint::read_checkpoint(start.checkpoint_path, function_);
    if (!read) {
      bad_checkpoint_ = true;
      return fail(ErrorCode::kRebuildWorld, read.error().message);
    }
    state_ = std::move(*read);
    if (state_->step != start.start_step)
      return fail(ErrorCode::kFixData, start.checkpoint_path + ": holds step " + std::to_string(state_->step) + ", expected " + std::to_string(start.start_step));
  } else {
    state_ = model::State::initial(function_);
  }
  prepared_ = false;
  bounce_.resize(size_t(state_->layout.target_floats));
  link_.set_position(start.generation, state_->step);
  return {};
}

// Whoever lacks the state gets it from source_rank over the mesh: first each rank says whether it does.
Status Trainer::transfer_state() {
  const size_t world = size_t(world_->size());
  if (world == 1) return {};
  const size_t self = size_t(world_->rank), source = size_t(world_->start.source_rank);
  struct Need {
    int64_t needs = 0, adam_steps = 0, step = 0;
  };
  Need mine{state_->step < 0 ? 1 : 0, state_->adam_steps, state_->step};
  std::vector<Need> needs(world);
  std::vector<std::vector<collective::Piece>> out(world), in(world);
  for (size_t r = 0; r < world; ++r)
    if (r != self) out[r].push_back({&mine, sizeof mine}), in[r].push_back({&needs[r], sizeof(Need)});
  TESSERA_TRY(world_->mesh->transfer(out, in, 0));
  needs[self] = mine;
  if (needs[source].needs) return fail(ErrorCode::kRebuildWorld, "rank " + std::to_string(source) + " should be the source of state, but has none");
  std::vector<collective::Piece> pieces;
  for (auto* role : {&state_->weights, &state_->target, &state_->exp_avg, &state_->exp_avg_sq})
    for (auto& buffer : *role)
      if (buffer.defined()) pieces.push_back({buffer.mutable_data_ptr(), size_t(buffer.numel()) * sizeof(float)});
  pieces.push_back({state_->target_position.mutable_data_ptr(), size_t(state_->target_position.numel()) * sizeof(float)});
  out.assign(world, {}), in.assign(world, {});
  for (size_t r = 0; r < world; ++r)
    if (self == source && r != self && needs[r].needs) out[r] = pieces;
  if (self != source && mine.needs) in[source] = pieces;
  TESSERA_TRY(world_->mesh->transfer(out, in, 0));
  if (mine.needs) {
    state_->step = needs[source].step, state_->adam_steps = needs[source].adam_steps;
    log_info("received state[{}] from rank {}", state_->step, source);
  }
  return {};
}

Status Trainer::compare_digests() {
  if (world_->size() == 1) return {};
  std::vector<Vote> votes(size_t(world_->size()));
  Vote& mine = votes[size_t(world_->rank)];
  mine.term = world_->start.generation.term, mine.number = world_->start.generation.number;
  mine.step = state_->step;
  mine.state = state_->digest();
  std::vector<std::vector<collective::Piece>> out(votes.size()), in(votes.size());
  for (size_t r = 0; r < votes.size(); ++r)
    if (Rank(r) != world_->rank) out[r].push_back({&mine, sizeof(Vote)}), in[r].push_back({&votes[r], sizeof(Vote)});
  TESSERA_TRY(world_->mesh->transfer(out, in, 0));
  if (auto agreed = tally(votes); !agreed) {
    digests_differ_ = true, suspect_ = agreed.error().suspect;
    return fail(ErrorCode::kRebuildWorld, "before step " + std::to_string(state_->step) + ": " + agreed.error().reason);
  }
  return {};
}

Status Trainer::run_world() {
  if (!world_ || world_->rank < 0) return {};
  while (state_->step < world_->stop_after) {
    if (abort_.raised()) return fail(ErrorCode::kRebuildWorld, "aborted");
    TESSERA_TRY(step());
  }
  // Planned end: the boundary that all agreed on. Nothing is in flight; say where we are and wait for what comes.
  const int64_t every = operation_.checkpoint.every_steps;
  const bool taken = every > 0 && state_->step > world_->start.start_step && state_->step % every == 0;
  if (world_->final_checkpoint && !taken && state_->step > 0) snapshot_if_due(true);
  writer_->wait_idle();
  phase(proto::Phase::kFinished);
  link_.send(proto::Sealed{world_->start.generation, state_->step, false, state_->digest(), {}});
  world_.reset();
  return {};
}

Status Trainer::step() {
  split_ = {};
  lap();
  prepared_ = false;  // the gradient buffers are about to change
  TESSERA_ASSIGN(Evaluated evaluated, evaluate());
  phase(proto::Phase::kReduce);
  TESSERA_TRY(exchange());
  split_.communication += lap();
  phase(proto::Phase::kVote);
  const StateDigest used = state_->digest();
  split_.compute += lap();
  TESSERA_ASSIGN(const Agreement agreement, vote(evaluated, used));
  split_.communication += lap();
  phase(proto::Phase::kApply);
  const float scale = float(1.0 / double(function_.batch.tiles));
  const optimizer::GradientSummary summary = optimizer::summarize(*state_, gradient_, scale);
  TESSERA_TRY(apply(true));
  split_.compute += lap();
  if (agreement.stop_after >= 0 && state_->step < world_->stop_after) {
    world_->stop_after = std::max<Step>(agreement.stop_after, state_->step);
    world_->final_checkpoint = agreement.checkpoint;
  }
  snapshot_if_due(agreement.checkpoint && agreement.stop_after < 0);
  split_.checkpoint += lap();
  last_steps_.push_back(describe_step(evaluated, agreement, summary, !summary.finite, used));
  if (last_steps_.size() > kStepsKept) last_steps_.pop_front();
  if (world_->rank == 0) link_.send(last_steps_.back());
  link_.set_position(world_->start.generation, state_->step);
  recent_seconds_.push_back(split_.total());
  if (recent_seconds_.size() > 64) recent_seconds_.erase(recent_seconds_.begin());
  std::vector<double> sorted = recent_seconds_;
  std::nth_element(sorted.begin(), sorted.begin() + int64_t(sorted.size() / 2), sorted.end());
  link_.report_step_seconds(sorted[sorted.size() / 2]);
  return {};
}

// Every tile of this rank, in order, one at a time; gradients merge by the tree as they come.
Result<Trainer::Evaluated> Trainer::evaluate() {
  Evaluated out;
  const Step k = state_->step;
  collective::NodeStack stack(int(function_.batch.tiles), world_->tiles);
  size_t top = 0;
  for (TileIndex t = world_->tiles.begin; t < world_->tiles.end; ++t) {
    phase(proto::Phase::kData);
    if (auto assignment = link_.take_assignment()) fetcher_->set_loaders(*assignment);
    fetcher_->want(k, world_->stop_after, world_->tiles);
    TESSERA_ASSIGN(FetchedTile fetched, fetcher_->take(k, t, abort_));
    split_.data += lap();
    phase(proto::Phase::kEvaluate);
    if (top == node_buffers_.size()) node_buffers_.push_back(model::make_buffers(state_->layout));
    const bool measure = t == 0 && k % kRankEverySteps == 0;
    const model::TileResult result = engine_->gradient(*state_, to_tensors(fetched), node_buffers_[top], measure);
    ++top;
    for (int merges = stack.push(t); merges > 0; --merges, --top) {
      for (size_t bucket = 0; bucket < gradient_.size(); ++bucket)
        optimizer::kernels::accumulate(node_buffers_[top - 2][bucket].mutable_data_ptr<float>(), node_buffers_[top - 1][bucket].const_data_ptr<float>(),
                                       gradient_[bucket].numel());
    }
    out.tile_losses.push_back(result.loss);
    out.batch += as_lanes(fetched.header.digest);
    if (measure) out.effective_rank = result.effective_rank;
    if (t == world_->tiles.begin) out.context_length = fetched.header.context_length;
    split_.compute += lap();
    if (abort_.raised()) return fail(ErrorCode::kRebuildWorld, "aborted");
  }
  return out;
}

Status Trainer::exchange() {
  for (size_t bucket = 0; bucket < gradient_.size(); ++bucket) {
    std::vector<collective::NodeBuffer> nodes;
    for (size_t i = 0; i < nodes_.size(); ++i) nodes.push_back({nodes_[i], node_buffers_[i][bucket].mutable_data_ptr<float>()});
    TESSERA_TRY(world_->collective->exchange(nodes, gradient_[bucket].numel(), gradient_[bucket].mutable_data_ptr<float>()));
  }
  world_->collective->quiesce();
  return {};
}

// The fence. After it the step is committed: everybody holds the whole gradient. The ranks' tile losses ride along, so
// that the logged loss is summed in tile order, whoever evaluated what.
Result<Agreement> Trainer::vote(Evaluated& evaluated, const StateDigest& used) {
  if (abort_.raised()) return fail(ErrorCode::kRebuildWorld, "aborted");
  const size_t world = size_t(world_->size()), self = size_t(world_->rank);
  std::vector<Vote> votes(world);
  Vote& mine = votes[self];
  mine.term = world_->start.generation.term, mine.number = world_->start.generation.number;
  mine.step = state_->step;
  mine.state = used;
  mine.gradient = model::gradient_digest(state_->layout, gradient_);
  mine.batch = evaluated.batch;
  if (self == 0) {
    if (const auto directive = link_.take_directive(); directive && directive->generation == world_->start.generation) {
      if (directive->stop_after >= 0) mine.stop_after = std::max<Step>(directive->stop_after, state_->step + 1);
      mine.checkpoint = directive->checkpoint;
    }
  }
  prepared_ = true;
  std::vector<double> losses(size_t(function_.batch.tiles), 0.0);
  std::vector<std::vector<collective::Piece>> out(world), in(world);
  for (size_t r = 0; r < world; ++r) {
    const TileRange range = *collective::tile_range(int(function_.batch.tiles), int(world), Rank(r));
    double* theirs = losses.data() + std::min<int64_t>(range.begin, int64_t(losses.size()));
    if (r == self) {
      std::copy(evaluated.tile_losses.begin(), evaluated.tile_losses.end(), theirs);
      continue;
    }
    out[r] = {{&mine, sizeof(Vote)}, {evaluated.tile_losses.data(), evaluated.tile_losses.size() * sizeof(double)}};
    in[r] = {{&votes[r], sizeof(Vote)}, {theirs, size_t(range.size()) * sizeof(double)}};
  }
  if (world > 1) TESSERA_TRY(world_->mesh->transfer(out, in, 0));
  evaluated.tile_losses = std::move(losses);
  auto agreed = tally(votes);
  if (!agreed) {
    prepared_ = false;  // whose gradient is right is not known: nobody applies this one
    digests_differ_ = true, suspect_ = agreed.error().suspect;
    return fail(ErrorCode::kRebuildWorld, agreed.error().reason);
  }
  return *agreed;
}

// state[k] -> state[k + 1] from the whole gradient: locally, no communication before the target is distributed.
Status Trainer::apply(bool from_vote) {
  const float scale = float(1.0 / double(function_.batch.tiles));
  const optimizer::StepRates rates = schedule_->at(state_->step);
  const bool skipped = !optimizer::summarize(*state_, gradient_, scale).finite;
  optimizer::apply_adamw(*state_, gradient_, scale, rates, function_.optimizer, skipped);
  prepared_ = false;
  const bool ema = !skipped || function_.masks.mode == "reference";  // the published code applies the EMA on a skipped step
  if (ema) {
    if (from_vote && operation_.ema_distribution == "broadcast") distribute_target(float(rates.ema));
    else {
      optimizer::ema_slice(*state_, float(rates.ema), 0, state_->layout.target_floats, bounce_.data());
      adopt_target(*state_, bounce_);
    }
    optimizer::ema_position(*state_, float(rates.ema));
  }
  return {};
}

// Rank r computes slice r of the target and sends it to all. Cut off in the middle the missing slices are computed here:
// T[k] and theta[k + 1] are intact, and the bits are the same.
void Trainer::distribute_target(float momentum) {
  const int64_t n = state_->layout.target_floats;
  const auto [first, last] = collective::slice_of(n, world_->size(), world_->rank);
  optimizer::ema_slice(*state_, momentum, first, last, bounce_.data() + first);
  split_.compute += lap();
  if (!world_->collective->all_gather(bounce_.data(), n)) optimizer::ema_slice(*state_, momentum, 0, n, bounce_.data());
  split_.communication += lap();
  adopt_target(*state_, bounce_);
}

void Trainer::snapshot_if_due(bool asked) {
  const int64_t every = operation_.checkpoint.every_steps;
  const bool due = asked || (every > 0 && state_->step % every == 0 && state_->step > 0);
  if (!due) return;
  phase(proto::Phase::kSnapshot);
  checkpoint::Scalars scalars;
  scalars.step = state_->step;
  scalars.adam_steps = state_->adam_steps;
  scalars.lineage = world_->start.lineage;
  scalars.function_yaml = welcome_.function_yaml;
  scalars.function_id = to_hex(function_id(function_));
  scalars.numerics_class = options_.numerics_class;
  scalars.state_digest = state_->digest();
  scalars.sample_position = welcome_.steps_per_epoch > 0 ? state_->step % welcome_.steps_per_epoch * function_.batch.global() : 0;
  writer_->write(checkpoint::take_snapshot(*state_, scalars, world_->start.generation, world_->rank, world_->size()));
}

proto::StepDone Trainer::describe_step(const Evaluated& evaluated, const Agreement& agreement, const optimizer::GradientSummary& summary, bool skipped, const StateDigest& used) {
  const Step k = state_->step - 1;
  const optimizer::StepRates rates = schedule_->at(k);
  proto::StepDone done;
  done.generation = world_->start.generation;
  done.lineage = world_->start.lineage;
  done.step = k;
  for (const double loss : evaluated.tile_losses) done.loss += loss;
  done.loss /= double(evaluated.tile_losses.size());
  done.lr = rates.lr, done.weight_decay = rates.weight_decay, done.ema = rates.ema;
  done.gradient_norm = summary.norm;
  done.skipped = skipped;
  done.context_length = evaluated.context_length;
  done.batch_digest = agreement.batch;
  done.gradient_digest = model::gradient_digest(state_->layout, gradient_);
  done.state_digest = used;
  done.images = function_.batch.global();
  done.split = split_;
  done.unix_time = unix_seconds();
  done.effective_rank = evaluated.effective_rank;
  return done;
}

// Never votes or applies in the generation again; says what it holds.
void Trainer::seal(const std::string& reason) {
  const Generation generation = world_ ? world_->start.generation : Generation{};
  if (world_) log_info("generation {} stopped: {}", to_string(generation), reason);
  proto::Sealed sealed;
  sealed.generation = generation;
  sealed.applied = state_ ? state_->step : -1;
  sealed.prepared = state_ && prepared_;
  if (state_) sealed.state_digest = state_->digest();
  if (sealed.prepared) sealed.gradient_digest = model::gradient_digest(state_->layout, gradient_);
  if (!world_ || world_->rank != 0)
    for (const auto& done : last_steps_) link_.send(done);
  world_.reset();
  abort_.clear();
  link_.report(generation, -1, sealed.applied, proto::Phase::kSealed);
  link_.send(sealed);
}

// The world broke under us: tell the coordinator, unless it was the one who stopped it, then wait for its WorldStop.
void Trainer::fault(const Error& error) {
  if (!world_) return;
  if (!abort_.raised()) {
    log_warning("generation {}: {}", to_string(world_->start.generation), error.message);
    const Rank suspect = digests_differ_ ? suspect_ : world_->collective ? world_->collective->suspect() : -1;
    link_.send(proto::WorldFault{world_->start.generation, state_ ? state_->step : -1, error.message, suspect, digests_differ_, bad_checkpoint_});
  }
  world_->collective.reset();
  world_->mesh.reset();  // peers that wait for us see the connection close at once
  phase(proto::Phase::kSealed);
}

void Trainer::phase(proto::Phase phase) {
  link_.report(world_ ? world_->start.generation : Generation{}, world_ ? world_->rank : -1, state_ ? state_->step : -1, phase);
}

double Trainer::lap() {
  const double now = monotonic_seconds(), seconds = now - lap_at_;
  lap_at_ = now;
  return seconds;
}

}  // namespace tessera::trainer
