// `tessera verify`: whether a run trained every step once, from its own records (metrics.jsonl and the checkpoints).
//
// What it shows: every step below the last committed one is there, no step has two different results, and each
// checkpoint's digest is the one that the ledger has for its step. That the samples of distinct steps are distinct within
// an epoch is a property of the order (data_loader/order), which has its own tests.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/config.h"
#include "common/ids.h"
#include "common/result.h"
#include "ops/cli/checkpoint_files.h"
#include "ops/cli/output.h"

namespace tessera::cli {

struct LedgerReport {
  int64_t steps_committed = 0;
  int64_t epochs_finished = 0;
  int64_t samples_expected = 0;
  int64_t samples_trained = 0;
  int64_t lost = 0;              // samples of steps that are missing
  int64_t repeated = 0;          // samples of steps that were trained on two different batches
  int64_t digest_conflicts = 0;  // steps, or checkpoints, whose digests differ
  std::vector<std::string> findings;  // a sentence each
  bool ok() const { return lost == 0 && repeated == 0 && digest_conflicts == 0; }
};

// What equal steps must agree on: a run with function.reduction fast may evaluate a step again to another state.
enum class Promise { kSameBits, kSameBatches };
Promise promise_of(const FunctionConfig& function);

// Pure. root: the step that the lineage begins with. rows: lines of metrics.jsonl in file order; a step that was evaluated again with equal digests counts once.
LedgerReport check_ledger(const std::vector<Json>& rows, const std::vector<CheckpointInfo>& checkpoints, int64_t global_batch, int64_t steps_per_epoch, Step root = 0, Promise promise = Promise::kSameBits);

// Errors: kUsage (no run), kFixData (no records, no configuration).
Result<LedgerReport> verify_run(const std::string& run_dir);

int verify_command(const std::string& run, Format format);

}  // namespace tessera::cli
