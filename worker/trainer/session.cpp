#include "worker/trainer/session.h"

#include <algorithm>

namespace tessera::trainer {

bool Fence::admit_start(const Generation& generation) {
  if (generation.term < highest_term || generation <= started || generation <= sealed) return false;
  highest_term = generation.term;
  started = generation;
  return true;
}

bool Fence::admit_stop(const Generation& generation) {
  if (generation.term < highest_term || generation < started) return false;
  highest_term = generation.term;
  sealed = std::max(sealed, generation);
  return true;
}

bool Fence::admit_directive(const Generation& generation) const { return generation == started && generation > sealed; }

Result<Entry> plan_entry(const proto::WorldStart& start, Rank rank, const Holding& holding) {
  const auto cannot = [&](const std::string& why) {
    return fail(ErrorCode::kRebuildWorld, "[trainer] generation " + to_string(start.generation) + " starts at step " + std::to_string(start.start_step) + ": " + why);
  };
  if (start.source == proto::StateSource::kCheckpoint) return Entry::kLoad;
  if (start.source == proto::StateSource::kInitial) {
    if (start.start_step != 0) return cannot("the initial state is that of step 0");
    return Entry::kInitial;
  }
  if (start.source_rank < 0 || start.source_rank >= Rank(start.members.size())) return cannot("no rank " + std::to_string(start.source_rank) + " to receive the state from");
  if (holding.has_state && holding.lineage == start.lineage) {
    if (holding.applied == start.start_step) return Entry::kKeep;
    if (holding.applied + 1 == start.start_step && holding.prepared) return Entry::kRollForward;
  }
  if (rank == start.source_rank)
    return cannot("this rank should be the source of state, but holds " + (holding.has_state ? "state[" + std::to_string(holding.applied) + "]" : std::string("none")));
  return Entry::kReceive;
}

}  // namespace tessera::trainer
