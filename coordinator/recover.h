// A run whose state.db is gone: what the folder's other files still know. The checkpoints are the truth about states; the
// ledger is read again from metrics.jsonl, which has a line for every committed step.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "coordinator/machine.h"

namespace tessera::coordinator {

struct RecoveredStep {
  Step step = 0;
  StateDigest batch, state, gradient;
  double loss = 0;
  bool skipped = false;
  std::string generation;
};
struct RecoveredRun {
  std::string lineage, numerics_class;
  Step root = 0;                     // the ledger begins here: 0, or a checkpoint's step when the lines before it are lost
  std::vector<RecoveredStep> steps;  // root, root + 1, ... without a gap
};

// nullopt: there is no good checkpoint, so nothing that a new start would lose.
// Errors: kFixConfig when the newest checkpoint belongs to another function than `function_id`.
Result<std::optional<RecoveredRun>> recover_run(const std::string& run_dir, const std::map<Step, CheckpointEntry>& checkpoints, const std::string& function_id);

}  // namespace tessera::coordinator
