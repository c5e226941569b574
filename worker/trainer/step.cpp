// The step of DESIGN section 4, from tiles to state[k + 1].
#include <algorithm>

#include "common/clock.h"
#include "common/log.h"
#include "worker/optimizer/update_kernels.h"
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
  TESSERA_TRY(audit());
  split_.compute += lap();
  phase(proto::Phase::kReduce);
  TESSERA_TRY(exchange());
  split_.communication += lap();
  phase(proto::Phase::kVote);
  facts_.state = state_->digest();  // after the last use of the weights
  facts_.gradient = model::gradient_digest(state_->layout, gradient_);
  facts_.summary = optimizer::summarize(*state_, gradient_, float(1.0 / double(function_.batch.tiles)));
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

// Every tile of this rank, in order, one at a time; gradients merge by the tree as they come.
Status Trainer::evaluate() {
  facts_ = {};
  facts_.step = state_->step;
  if (world_->size() == 2) facts_.applied = state_->digest();
  at(Point::kBegin);
  facts_.tiles.resize(size_t(function_.batch.tiles));
  audit_ = plan_audit(state_->step, operation_.audit_every_steps, int(function_.batch.tiles), world_->size());
  if (audit_ && audit_->auditor == world_->rank) fetcher_->also(state_->step, audit_->tile);
  collective::NodeStack stack(int(function_.batch.tiles), world_->tiles);
  size_t top = 0;
  for (TileIndex t = world_->tiles.begin; t < world_->tiles.end; ++t) {
    if (top == node_buffers_.size()) node_buffers_.push_back(model::make_buffers(state_->layout));
    TESSERA_TRY(evaluate_tile(t, node_buffers_[top]));
    ++top;
    for (int merges = stack.push(t); merges > 0; --merges, --top)
      for (size_t bucket = 0; bucket < gradient_.size(); ++bucket)
        optimizer::kernels::accumulate(node_buffers_[top - 2][bucket].mutable_data_ptr<float>(), node_buffers_[top - 1][bucket].const_data_ptr<float>(), gradient_[bucket].numel());
    split_.compute += lap();
    if (abort_.raised()) return fail(ErrorCode::kRebuildWorld, "aborted");
  }
  return {};
}

Status Trainer::evaluate_tile(TileIndex tile, model::FlatBuffers& gradient) {
  phase(proto::Phase::kData);
  TESSERA_ASSIGN(const FetchedTile fetched, fetcher_->take(state_->step, tile, abort_));
  split_.data += lap();
  phase(proto::Phase::kEvaluate);
  const bool measure = tile == 0 && state_->step % kRankEverySteps == 0;
  const model::TileResult result = engine_->gradient(*state_, to_tensors(fetched), gradient, measure);
  if (options_.at_gradient) options_.at_gradient(tile, gradient);
  if (audit_ && audit_->tile == tile) audited_ = model::gradient_digest(state_->layout, gradient);
  facts_.tiles[size_t(tile)] = {result.loss, result.effective_rank, as_lanes(fetched.header.digest), fetched.header.context_length, int64_t(fetched.header.grey_samples.size())};
  facts_.grey_samples.insert(facts_.grey_samples.end(), fetched.header.grey_samples.begin(), fetched.header.grey_samples.end());
  return {};
}

// Bucket by bucket to the whole sum, the same on every rank; then what the ledger wants to know of the tiles.
Status Trainer::exchange() {
  for (size_t bucket = 0; bucket < gradient_.size(); ++bucket) {
    std::vector<collective::NodeBuffer> nodes;
    for (size_t i = 0; i < nodes_.size(); ++i) nodes.push_back({nodes_[i], node_buffers_[i][bucket].mutable_data_ptr<float>()});
    TESSERA_TRY(world_->collective->exchange(nodes, gradient_[bucket].numel(), gradient_[bucket].mutable_data_ptr<float>()));
  }
  world_->collective->quiesce();
  return share_reports(facts_, world_->mesh.get(), world_->tiles);
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
  optimizer::apply_adamw(*state_, gradient_, float(1.0 / double(function_.batch.tiles)), rates, function_.optimizer, skipped);
  prepared_ = false;
  if (skipped && function_.masks.mode != "reference") return;  // the published code averages on a skipped step too
  bounce_.resize(size_t(state_->layout.target_floats));
  if (by == EmaBy::kAgreement && operation_.ema_distribution == "broadcast") {
    distribute_target(rates.ema);
  } else {
    optimizer::ema_slice(*state_, rates.ema, 0, state_->layout.target_floats, bounce_.data());
  }
  adopt_target(*state_, bounce_);
  optimizer::ema_position(*state_, rates.ema);
}

// Rank r computes slice r of the target and sends it to all. Cut off in the middle, all is computed here: T[k] and
// theta[k + 1] are intact, and the bits are the same.
void Trainer::distribute_target(double momentum) {
  const int64_t n = state_->layout.target_floats;
  const auto [first, last] = collective::slice_of(n, world_->size(), world_->rank);
  optimizer::ema_slice(*state_, momentum, first, last, bounce_.data() + first);
  split_.compute += lap();
  if (!world_->collective->all_gather(bounce_.data(), n)) optimizer::ema_slice(*state_, momentum, 0, n, bounce_.data());
  split_.communication += lap();
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
