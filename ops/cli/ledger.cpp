#include "ops/cli/ledger.h"

#include <cstdio>

#include "common/config.h"
#include "ops/cli/progress.h"
#include "ops/cli/run_folder.h"

namespace tessera::cli {
namespace {

struct Digests {
  std::string batch, state;
};

std::map<Step, Digests> read_rows(const std::vector<Json>& rows, int64_t global_batch, LedgerReport& report) {
  std::map<Step, Digests> seen;
  for (const Json& row : rows) {
    if (!row.contains("step")) continue;
    const Step step = row["step"];
    const Digests here{row.value("batch_digest", ""), row.value("state_digest", "")};
    const auto [it, fresh] = seen.try_emplace(step, here);
    if (fresh) continue;
    if (it->second.batch != here.batch) {
      report.repeated += global_batch;
      report.findings.push_back("step " + std::to_string(step) + " was trained on two different batches (" + it->second.batch + " and " + here.batch + ")");
    }
    if (it->second.state != here.state) {
      ++report.digest_conflicts;
      report.findings.push_back("step " + std::to_string(step) + " started from two different states (" + it->second.state + " and " + here.state + ")");
    }
  }
  return seen;
}

}  // namespace

LedgerReport check_ledger(const std::vector<Json>& rows, const std::vector<CheckpointInfo>& checkpoints, int64_t global_batch, int64_t steps_per_epoch, Step root, Promise promise) {
  LedgerReport report;
  const std::map<Step, Digests> seen = read_rows(rows, global_batch, report);
  const Step end = seen.empty() ? root : seen.rbegin()->first + 1;
  report.steps_committed = int64_t(seen.size());
  report.samples_expected = (end - root) * global_batch;
  report.samples_trained = report.steps_committed * global_batch;
  report.lost = report.samples_expected - report.samples_trained;
  report.epochs_finished = steps_per_epoch > 0 ? end / steps_per_epoch : 0;
  for (Step step = root; step < end && report.findings.size() < 100; ++step)
    if (!seen.contains(step)) report.findings.push_back("step " + std::to_string(step) + " is missing although later steps are there");
  if (promise == Promise::kSameBatches) {
    report.findings.push_back("states were not compared: function.reduction fast promises their bits to nobody but the workers of one world");
    report.digest_conflicts = 0;
    return report;
  }
  for (const CheckpointInfo& checkpoint : checkpoints) {
    const auto row = seen.find(checkpoint.step);
    if (!checkpoint.ok || row == seen.end() || row->second.state == checkpoint.state_digest) continue;
    ++report.digest_conflicts;
    report.findings.push_back("checkpoint " + checkpoint.path + " has state " + checkpoint.state_digest + ", the ledger has " + row->second.state + " for step " + std::to_string(checkpoint.step));
  }
  return report;
}

Promise promise_of(const FunctionConfig& function) { return function.reduction == "fast" ? Promise::kSameBatches : Promise::kSameBits; }

Result<LedgerReport> verify_run(const std::string& run_dir) {
  TESSERA_ASSIGN(const Config config, load_config(run_dir + "/config.yaml", {}));
  const std::vector<Json> rows = read_json_lines(run_dir + "/metrics.jsonl");
  if (rows.empty()) return fail(ErrorCode::kFixData, run_dir + "/metrics.jsonl holds no step: the run has not committed one yet");
  std::vector<CheckpointInfo> checkpoints;
  if (const auto folders = checkpoint_folders(run_dir))
    for (const std::string& folder : *folders) checkpoints.push_back(inspect_checkpoint(folder, Depth::kManifest));
  int64_t steps_per_epoch = 0;
  Step root = 0;
  const auto status = read_last_status(run_dir);
  if (status) root = Step(number_at(*status, "/run/root_step", 0));
  if (status && status->contains("dataset") && (*status)["dataset"].is_object())
    steps_per_epoch = (*status)["dataset"].value("samples", int64_t{0}) / config.function.batch.global();
  return check_ledger(rows, checkpoints, config.function.batch.global(), steps_per_epoch, root, promise_of(config.function));
}

int verify_command(const std::string& run, Format format) {
  const auto reference = find_run(run);
  if (!reference) return report(reference.error(), format);
  if (reference->run_dir.empty()) return report(Error{ErrorCode::kUsage, "tessera verify reads a run's folder; name the folder instead of " + reference->url}, format);
  const auto result = verify_run(reference->run_dir);
  if (!result) return report(result.error(), format);
  for (const std::string& finding : result->findings) say("  " + finding);
  if (format == Format::kJson) {
    print_json({{"steps_committed", result->steps_committed}, {"epochs_finished", result->epochs_finished}, {"samples_expected", result->samples_expected},
                {"samples_trained", result->samples_trained}, {"lost", result->lost}, {"repeated", result->repeated}, {"digest_conflicts", result->digest_conflicts}, {"ok", result->ok()}});
  } else {
    std::printf("%s: %s steps committed, %s samples trained, %lld lost, %lld repeated, %lld digest conflicts: %s\n", reference->run_dir.c_str(),
                human_count(result->steps_committed).c_str(), human_count(result->samples_trained).c_str(), static_cast<long long>(result->lost),
                static_cast<long long>(result->repeated), static_cast<long long>(result->digest_conflicts), result->ok() ? "ok" : "NOT OK");
  }
  return result->ok() ? exit_codes::kDone : exit_codes::kDataCorrupt;
}

}  // namespace tessera::cli
