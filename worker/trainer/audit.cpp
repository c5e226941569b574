#include "worker/trainer/audit.h"

#include <algorithm>
#include <map>

#include "common/log.h"
#include "worker/collective/tree_sum.h"
#include "worker/model/backend.h"
#include "worker/trainer/tile.h"
#include "worker/trainer/trainer.h"

namespace tessera::trainer {

std::optional<AuditPlan> plan_audit(Step step, int64_t every_steps, int tile_count, int world_size) {
  if (every_steps <= 0 || world_size < 2 || step % every_steps != 0) return std::nullopt;
  const int64_t turn = step / every_steps;
  AuditPlan plan;
  plan.tile = TileIndex(turn % tile_count);
  for (Rank r = 0; r < world_size; ++r)
    if (const auto range = collective::tile_range(tile_count, world_size, r); range && plan.tile >= range->begin && plan.tile < range->end) plan.owner = r;
  plan.auditor = Rank((plan.owner + 1 + turn / tile_count % (world_size - 1)) % world_size);
  return plan;
}

AuditVerdict judge_audit(const AuditPlan& plan, Step step, const StateDigest& owner_first, const StateDigest& auditor_first, const std::vector<StateDigest>& again) {
  std::vector<std::pair<Rank, StateDigest>> all{{plan.owner, owner_first}, {plan.auditor, auditor_first}};
  for (size_t r = 0; r < again.size(); ++r) all.push_back({Rank(r), again[r]});
  const auto count = [&](const StateDigest& value) { return std::count_if(all.begin(), all.end(), [&](const auto& one) { return one.second == value; }); };
  const auto best = std::max_element(all.begin(), all.end(), [&](const auto& a, const auto& b) { return count(a.second) < count(b.second); });
  const std::string what = "audit of tile " + std::to_string(plan.tile) + " of step " + std::to_string(step) + ": ";
  if (2 * count(best->second) <= int64_t(all.size())) return {-1, what + "no gradient has a majority among ranks " + std::to_string(plan.owner) + ", " + std::to_string(plan.auditor) + " and their peers"};
  std::map<Rank, int> wrong;
  for (const auto& [rank, value] : all)
    if (value != best->second) ++wrong[rank];
  const auto worst = std::max_element(wrong.begin(), wrong.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return {worst->first, what + "rank " + std::to_string(worst->first) + " computed another gradient than " + std::to_string(count(best->second)) + " of " + std::to_string(all.size()) + " evaluations"};
}

// The gradient of a tile by itself, in a buffer of its own.
Result<StateDigest> Trainer::evaluate_again(TileIndex tile) {
  fetcher_->also(state_->step, tile);
  phase(proto::Phase::kData);
  TESSERA_ASSIGN(const FetchedTile fetched, fetcher_->take(state_->step, tile, abort_));
  phase(proto::Phase::kEvaluate);
  if (audit_gradient_.empty()) audit_gradient_ = model::make_buffers(state_->layout, options_.device);
  engine_->gradient(*state_, to_tensors(fetched), audit_gradient_, false);
  if (options_.at_gradient) options_.at_gradient(tile, audit_gradient_);
  return model::gradient_digest(state_->layout, audit_gradient_);
}

Status Trainer::audit() {
  if (!audit_) return {};
  std::vector<StateDigest> first(size_t(world_->size()));
  StateDigest& mine = first[size_t(world_->rank)];
  if (world_->rank == audit_->owner) mine = audited_;
  if (world_->rank == audit_->auditor) {
    TESSERA_ASSIGN(mine, evaluate_again(audit_->tile));
  }
  phase(proto::Phase::kReduce);
  TESSERA_TRY(world_->mesh->all_to_all(first, 0));
  const StateDigest owner = first[size_t(audit_->owner)], auditor = first[size_t(audit_->auditor)];
  if (owner == auditor) return {};
  log_warning("step {}: ranks {} and {} computed different gradients of tile {}; every rank evaluates it again", state_->step, audit_->owner, audit_->auditor, audit_->tile);
  std::vector<StateDigest> again(size_t(world_->size()));
  TESSERA_ASSIGN(again[size_t(world_->rank)], evaluate_again(audit_->tile));
  phase(proto::Phase::kReduce);
  TESSERA_TRY(world_->mesh->all_to_all(again, 0));
  const AuditVerdict verdict = judge_audit(*audit_, state_->step, owner, auditor, again);
  cause_.digests_differ = true, cause_.suspect = verdict.suspect;
  return fail(ErrorCode::kRebuildWorld, verdict.reason);
}

}  // namespace tessera::trainer
