// What the ranks tell each other about a step's tiles beside the gradient, and what the ledger is told. The reports are
// exchanged before the vote: whoever may roll a step forward can also describe it, should rank 0 be gone.
#pragma once

#include <vector>

#include "common/digest.h"
#include "proto/messages.h"
#include "worker/collective/mesh.h"
#include "worker/optimizer/update.h"

namespace tessera::trainer {

// Of one tile, from the rank that evaluated it. Fixed layout on the wire.
struct TileReport {
  double loss = 0;
  double effective_rank = 0;  // 0: not measured
  StateDigest digest;         // the tile's digest as a term of the step's batch digest
  int64_t context_length = 0;
  int64_t grey_count = 0;     // undecodable samples replaced by grey
};

// All that is known of a step once its gradient is whole.
struct StepFacts {
  Step step = 0;
  std::vector<TileReport> tiles;       // by tile index
  std::vector<SampleId> grey_samples;  // by tile
  StateDigest state;                   // of state[step], after the last backward
  StateDigest applied;                 // of state[step], before the first forward; in a world of two only
  StateDigest gradient;                // of the reduced gradient
  optimizer::GradientSummary summary;
};

// Fills in the other ranks' reports (tiles of tile_range) and grey samples; ours are there already. mesh null: one rank.
// Error: kRebuildWorld.
Status share_reports(StepFacts& facts, collective::Mesh* mesh, const TileRange& mine);

// The ledger's line. The loss is the mean over tiles, summed in tile order, whoever evaluated what. Pure.
proto::StepDone describe_step(const StepFacts& facts, const Generation& generation, const std::string& lineage, const optimizer::StepRates& rates, int64_t images);

}  // namespace tessera::trainer
