// The step of DESIGN section 4, from tiles to state[k + 1].
#include <algorithm>
#include <utility>

#include "common/clock.h"
#include "common/log.h"
#include "worker/model/backend.h"
#include "worker/trainer/tile.h"
#include "worker/trainer/trainer.h"

namespace tessera::trainer {
namespace {

constexpr int64_t kRankEverySteps = 50;  // steps between measurements of the effective rank
constexpr size_t kRecentSteps = 64;

double median(std::vector<double> values) {
  const auto middle = values.begin() + int64_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

Status Trainer::step() {
  split_ = {};
  lap();
  prepared_ = false;  // the gradient buffers are about to change
  TESSERA_TRY(evaluate());
  phase(proto::Phase::kReduce);
  TESSERA_TRY(exchange());
  split_.communication += lap();
  TESSERA_TRY(audit());
  split_.compute += lap();
  phase(proto::Phase::kReduce);
  TESSERA_TRY(share_reports(facts_, world_->mesh.get(), world_->tiles));
  split_.communication += lap();
  phase(proto::Phase::kVote);
  facts_.state = state_->digest();  // after the last use of the weights
  const optimizer::GradientFacts gradient = optimizer::examine(*state_, reduction_->whole(), float(1.0 / double(function_.batch.tiles)));
  facts_.gradient = gradient.digest, facts_.summary = gradient.summary;
  split_.compute += lap();
  at(Point::kBeforeVote);
  TESSERA_ASSIGN(const Agreement agreement, vote());
  split_.communication += lap();
  at(Point::kAfterVote);
  writer_->wait_copied();
  split_.checkpoint += lap();
  phase(proto::Phase::kApply);
  apply(EmaBy::kAgreement);
  split_.compute += lap();
  obey_agreement(agreement);
  split_.checkpoint += lap();
  report_step();
  link_.set_position(world_->start.generation, state_->step);
  recent_seconds_.push_back(split_.total());
  if (recent_seconds_.size() > kRecentSteps) recent_seconds_.erase(recent_seconds_.begin());
  link_.report_step_seconds(median(recent_seconds_), *std::max_element(recent_seconds_.begin(), recent_seconds_.end()));
  return {};
}

// Every tile of this rank, in order, one at a time; gradients merge as they come, and those of the last tile leave bucket by
// bucket while it is still computed.
Status Trainer::evaluate() {
  facts_ = {};
  facts_.step = state_->step;
  applied_is_whole_ = world_->size() != 2;
  if (!applied_is_whole_) facts_.applied = state_->digest_without_target();
  at(Point::kBegin);
  facts_.tiles.resize(size_t(function_.batch.tiles));
  audit_ = plan_audit(state_->step, operation_.audit_every_steps, int(function_.batch.tiles), world_->size());
  if (audit_ && audit_->auditor == world_->rank) fetcher_->also(state_->step, audit_->tile);
  reduction_->begin(*state_, world_->tiles);
  waited_seconds_ = 0;
  for (TileIndex t = world_->tiles.begin; t < world_->tiles.end; ++t) {
    TESSERA_TRY(evaluate_tile(t, t + 1 == world_->tiles.end));
    const double waited = std::exchange(waited_seconds_, 0);
    split_.compute += lap() - waited, split_.communication += waited;
    if (abort_.raised()) return fail(ErrorCode::kRebuildWorld, "aborted");
  }
  if (!world_->tiles.empty()) return {};
  await_target();
  for (size_t bucket = state_->layout.buckets.size(); bucket-- > 0;) reduce(bucket);
  return {};
}

Status Trainer::evaluate_tile(TileIndex tile, bool last) {
  phase(proto::Phase::kData);
  TESSERA_ASSIGN(const FetchedTile fetched, fetcher_->take(state_->step, tile, abort_));
  split_.data += lap();
  phase(proto::Phase::kEvaluate);
  const bool measure = tile == 0 && state_->step % kRankEverySteps == 0;
  model::FlatBuffers& gradient = reduction_->tile_buffer(tile);
  const auto take = [&](size_t bucket) {
    reduction_->merge(bucket);
    if (last) reduce(bucket);
  };
  // Whoever wants the tile's own gradient gets it before anything of it leaves.
  const bool audited = audit_ && audit_->tile == tile, early = !audited && !options_.at_gradient;
  model::GradientHooks hooks;
  hooks.before_target = [this] {  // who waits for others is no slow evaluator
    if (target_on_its_way_) phase(proto::Phase::kReduce);
    await_target();
    phase(proto::Phase::kEvaluate);
  };
  if (early) hooks.bucket_ready = take;
  const model::TileResult result = engine_->gradient(*state_, to_tensors(fetched), gradient, measure, hooks);
  if (options_.at_gradient) options_.at_gradient(tile, gradient);
  if (audited) audited_ = model::gradient_digest(state_->layout, gradient);
  for (size_t bucket = state_->layout.buckets.size(); !early && bucket-- > 0;) take(bucket);
  facts_.tiles[size_t(tile)] = {result.loss, result.effective_rank, as_lanes(fetched.header.digest), fetched.header.context_length, int64_t(fetched.header.grey_samples.size())};
  facts_.grey_samples.insert(facts_.grey_samples.end(), fetched.header.grey_samples.begin(), fetched.header.grey_samples.end());
  return {};
}

// To the exchanger: this rank's part of the bucket is complete. The same order on every rank: the layout's last bucket first.
void Trainer::reduce(size_t bucket) {
  collective::Collective& collective = *world_->collective;
  world_->exchanger->submit([this, &collective, bucket, mark = collective.mark()]() -> Status {
    TESSERA_TRY(collective.begin_after(mark));
    TESSERA_TRY(reduction_->reduce(collective, bucket));
    return bucket == 0 ? reduction_->finish(collective) : Status{};
  });
}

// Until the whole sum is here, the same on every rank.
Status Trainer::exchange() {
  TESSERA_TRY(world_->exchanger->wait());
  world_->collective->quiesce();
  return {};
}

// The fence: behind it the step is committed, for everybody holds the whole gradient. Once our vote may have left, the
// step may have been applied by somebody, so from here on it is `prepared`.
Result<Agreement> Trainer::vote() {
  if (abort_.raised()) return fail(ErrorCode::kRebuildWorld, "aborted");
  std::vector<Vote> votes(size_t(world_->size()));
  Vote& mine = votes[size_t(world_->rank)];
  mine.term = world_->start.generation.term, mine.number = world_->start.generation.number;
  mine.step = state_->step;
  mine.state = facts_.state, mine.applied = facts_.applied;
  mine.gradient = facts_.gradient;
  for (TileIndex t = world_->tiles.begin; t < world_->tiles.end; ++t) mine.batch += facts_.tiles[size_t(t)].digest;
  if (world_->rank == 0) {
    if (const auto directive = link_.take_directive(); directive && directive->generation == world_->start.generation) {
      if (directive->stop_after >= 0) mine.stop_after = std::max<Step>(directive->stop_after, state_->step + 1);
      mine.checkpoint = directive->checkpoint;
    }
    mine.acknowledged = link_.acknowledged();
  }
  prepared_ = true;
  if (world_->mesh) TESSERA_TRY(world_->mesh->all_to_all(votes, 0));
  auto agreed = tally(votes);
  if (!agreed) {
    prepared_ = false;  // whose gradient is right is not known: nobody applies this one
    cause_.digests_differ = true, cause_.suspect = agreed.error().suspect;
    return fail(ErrorCode::kRebuildWorld, agreed.error().reason);
  }
  return *agreed;
}

// state[k] -> state[k + 1] from the whole gradient: locally, no communication before the target is distributed.
void Trainer::apply(EmaBy by) {
  writer_->wait_copied();  // the state changes from here on
  const optimizer::StepRates rates = schedule_->at(state_->step);
  const bool skipped = !facts_.summary.finite;
  const float scale = float(1.0 / double(function_.batch.tiles));
  const bool shared = by == EmaBy::kAgreement && operation_.ema_distribution == "broadcast" && world_->size() > 1, gpu = model::on_device(state_->weights);
  const bool fused = !shared && !skipped;  // weights and target in one pass
  if (fused) optimizer::apply_with_target(*state_, reduction_->whole(), scale, rates, function_.optimizer);
  else optimizer::apply_adamw(*state_, reduction_->whole(), scale, rates, function_.optimizer, skipped);
  reduction_->advance(*state_);
  prepared_ = false;
  if (skipped && function_.masks.mode != "reference") return;  // the published code averages on a skipped step too
  if (shared) {
    distribute_target(rates.ema);
  } else if (!fused && gpu) {
    optimizer::ema_on_device(*state_, rates.ema);
  } else if (!fused) {
    optimizer::ema_slice(*state_, rates.ema, 0, state_->layout.target_floats, bounce_.get());
    adopt_target(*state_, bounce_.get());
  }
  optimizer::ema_position(*state_, rates.ema);
}

// Rank r computes slice r of the target and sends it to all, while the next step has begun. Cut off in the middle, all is
// computed here: T[k] and theta[k + 1] are intact, and the bits are the same.
void Trainer::distribute_target(double momentum) {
  const int64_t n = state_->layout.target_floats;
  const auto [first, last] = collective::slice_of(n, world_->size(), world_->rank);
  if (!bounce_) bounce_ = device_floats(n, options_.device);  // on a GPU not before it is needed
  optimizer::ema_slice(*state_, momentum, first, last, bounce_.get() + first);
  target_on_its_way_ = true;
  collective::Collective& collective = *world_->collective;
  world_->exchanger->submit([this, &collective, momentum, n, mark = collective.mark()]() -> Status {
    Status done = collective.begin_after(mark);
    if (done) done = collective.all_gather(bounce_.get(), n);
    if (!done) optimizer::ema_slice(*state_, momentum, 0, n, bounce_.get());
    adopt_target(*state_, bounce_.get());
    return done;
  });
}

// Before anybody here reads the target, hashes it, saves it or hands it on. That a peer is gone is said by the next exchange.
void Trainer::await_target() {
  if (target_on_its_way_) {
    const double since = monotonic_seconds();
    (void)world_->exchanger->wait();
    waited_seconds_ += monotonic_seconds() - since;
    target_on_its_way_ = false;
  }
  if (std::exchange(applied_is_whole_, true)) return;
  facts_.applied += state_->target_digest();
}

// What rank 0 asked for in its vote, and the regular checkpoint; the same on every rank.
void Trainer::obey_agreement(const Agreement& agreement) {
  link_.acknowledge(agreement.acknowledged);
  const bool stops = agreement.stop_after >= 0 && agreement.stop_after < world_->stop_after;
  if (stops) {
    world_->stop_after = std::max<Step>(agreement.stop_after, state_->step);
    world_->final_checkpoint = agreement.checkpoint;
  }
  const int64_t every = operation_.checkpoint.every_steps;
  if ((every > 0 && state_->step % every == 0) || (agreement.checkpoint && !stops)) snapshot();
}

// The writer copies this rank's share of the state while the next step is evaluated.
void Trainer::snapshot() {
  if (world_->snapshot_at == state_->step) return;
  await_target();
  world_->snapshot_at = state_->step;
  checkpoint::Scalars scalars;
  scalars.step = state_->step;
  scalars.adam_steps = state_->adam_steps;
  scalars.lineage = lineage_;
  scalars.function_yaml = welcome_.function_yaml;
  scalars.function_id = function_id_;
  scalars.numerics_class = options_.numerics_class;
  scalars.sample_position = welcome_.steps_per_epoch > 0 ? state_->step % welcome_.steps_per_epoch * function_.batch.global() : 0;
  writer_->take(*state_, std::move(scalars), world_->start.generation, world_->rank, world_->size());
}

// Rank 0 reports the step; the others keep the same report until rank 0's votes say that the ledger has it.
void Trainer::report_step() {
  proto::StepDone done = describe_step(facts_, world_->start.generation, lineage_, schedule_->at(facts_.step), function_.batch.global());
  done.split = split_;
  done.unix_time = unix_seconds();
  if (world_->rank == 0) link_.send(std::move(done));
  else link_.keep(std::move(done));
}

}  // namespace tessera::trainer
