// The audit (operation.audit_every_steps): digests in the votes find replicas that differ, but a device that computes a wrong gradient
// gives every replica the same wrong sum. So now and then one tile is evaluated by a second rank too. Equal inputs and one
// numerics class must give equal bits; when they do not, every rank evaluates the tile again and the majority names the
// device. The result of a step never depends on its audit. Pure; the trainer evaluates and exchanges.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/digest.h"
#include "common/ids.h"

namespace tessera::trainer {

struct AuditPlan {
  TileIndex tile = 0;
  Rank owner = 0;    // evaluates the tile for the step
  Rank auditor = 0;  // another rank, possibly a spare
};
// The audit of this step: tiles and auditors take turns. nullopt: none is due (every_steps 0, or no multiple of it), or
// there is one rank only.
std::optional<AuditPlan> plan_audit(Step step, int64_t every_steps, int tile_count, int world_size);

struct AuditVerdict {
  Rank suspect = -1;   // -1: no majority, nobody can be named
  std::string reason;  // "audit of tile 3 of step 40: rank 2 computed another gradient than ranks 0, 1"
};
// owner_first and auditor_first: the two digests that differ; again: by rank, of the evaluation that followed. The value
// that most evaluations gave is right when more than half of them agree on it.
AuditVerdict judge_audit(const AuditPlan& plan, Step step, const StateDigest& owner_first, const StateDigest& auditor_first, const std::vector<StateDigest>& again);

}  // namespace tessera::trainer
