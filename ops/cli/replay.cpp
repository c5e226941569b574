#include "ops/cli/replay.h"

#include <cstdio>
#include <filesystem>
#include <map>
#include <unistd.h>

#include "common/config.h"
#include "common/file.h"
#include "common/process.h"
#include "ops/cli/checkpoint_files.h"
#include "ops/cli/helpers.h"
#include "ops/cli/ledger.h"
#include "ops/cli/progress.h"
#include "ops/cli/run_folder.h"

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;

struct Row {
  std::string batch, state, gradient;
  bool operator==(const Row&) const = default;
};
std::map<Step, Row> rows_of(const std::string& run_dir) {
  std::map<Step, Row> out;
  for (const Json& row : read_json_lines(run_dir + "/metrics.jsonl"))
    if (row.contains("step")) out[row["step"]] = {text_at(row, "/batch_digest"), text_at(row, "/state_digest"), text_at(row, "/gradient_digest")};
  return out;
}

// The newest good checkpoint at or before the step; step -1: the initial state, when the run began with it.
Result<CheckpointInfo> start_of(const std::string& run_dir, Step step, Step first) {
  CheckpointInfo best;
  best.step = -1;
  if (const auto folders = checkpoint_folders(run_dir))
    for (const std::string& folder : *folders)
      if (const CheckpointInfo info = inspect_checkpoint(folder, Depth::kManifest); info.ok && info.step <= step && info.step > best.step) best = info;
  if (best.step < 0 && first > 0) return fail(ErrorCode::kUsage, run_dir + " has no checkpoint at or before step " + std::to_string(step) + ", and it began with an imported one");
  return best;
}

struct Scratch {
  std::string path;
  ~Scratch() {
    std::error_code ignored;
    if (!path.empty()) fs::remove_all(path, ignored);
  }
};

Result<Json> replay(const std::string& run_dir, Step step, int64_t workers, SignalWatch& signals) {
  const auto ledger = rows_of(run_dir);
  if (!ledger.contains(step))
    return fail(ErrorCode::kUsage, ledger.empty() ? run_dir + " has committed no step yet" : "step " + std::to_string(step) + " is not in " + run_dir + "; it has steps " + std::to_string(ledger.begin()->first) + " to " + std::to_string(ledger.rbegin()->first));
  TESSERA_ASSIGN(const CheckpointInfo root, start_of(run_dir, step, ledger.begin()->first));
  std::string form = (fs::temp_directory_path() / "tessera-replay-XXXXXX").string();
  if (::mkdtemp(form.data()) == nullptr) return fail(ErrorCode::kIo, "cannot make a temporary folder; set TMPDIR");
  const Scratch scratch{form};
  const std::string again = form + "/run";
  std::vector<std::string> arguments{"up", run_dir + "/config.yaml", "--json", "--steps", std::to_string(step + 1), "--set", "operation.run_dir=" + again, "--set", "operation.evaluate.at_end=none",
                                     "--set", "operation.control.port=0", "--set", "operation.http.port=0"};
  if (root.step >= 0) arguments.insert(arguments.end(), {"--from", root.path});
  if (workers > 0) arguments.insert(arguments.end(), {"--workers", std::to_string(workers)});
  say("evaluating steps " + std::to_string(std::max<Step>(root.step, 0)) + " to " + std::to_string(step) + " again, from " + (root.step < 0 ? "the initial state" : root.path));
  TESSERA_ASSIGN(const Json result, run_helper("tessera", arguments, signals));
  const auto replayed = rows_of(again);
  // Its states and gradients are those of one number of workers, and of no other.
  TESSERA_ASSIGN(const Config config, load_config(run_dir + "/config.yaml", {}));
  const bool same_bits = promise_of(config.function) == Promise::kSameBits;
  const auto equal = [&](const Row& a, const Row& b) { return same_bits ? a == b : a.batch == b.batch; };
  Json differing = Json::array();
  for (const auto& [k, row] : replayed)
    if (const auto known = ledger.find(k); known != ledger.end() && !equal(known->second, row)) differing.push_back(k);
  const std::string after = text_at(result, "/state_digest");
  std::string expected;
  if (const auto next = ledger.find(step + 1); next != ledger.end()) expected = next->second.state;
  else if (const CheckpointInfo info = newest_checkpoint(run_dir); info.step == step + 1) expected = info.state_digest;
  const bool whole = replayed.contains(step);
  return Json{{"step", step},
              {"from_step", std::max<Step>(root.step, 0)},
              {"steps_compared", replayed.size()},
              {"batch_digest", ledger.at(step).batch},
              {"state_digest", ledger.at(step).state},
              {"state_digest_after", after},
              {"expected_after", expected.empty() ? Json(nullptr) : Json(expected)},
              {"differing", differing},
              {"compared", same_bits ? "all" : "batches"},
              {"ok", whole && differing.empty() && (!same_bits || expected.empty() || expected == after)}};
}

}  // namespace

int replay_command(const std::string& run, Step step, int64_t workers, Format format) {
  SignalWatch signals;
  const auto reference = find_run(run);
  if (!reference) return report(reference.error(), format);
  if (reference->run_dir.empty()) return report(Error{ErrorCode::kUsage, "tessera replay reads a run's folder; name the folder instead of " + reference->url}, format);
  const auto result = replay(reference->run_dir, step, workers, signals);
  if (!result) return report(result.error(), format);
  const bool ok = (*result)["ok"];
  if (format == Format::kJson) print_json(*result);
  else
    std::printf("step %lld: %zu steps evaluated again from step %lld, %s\n", static_cast<long long>(step), size_t((*result)["steps_compared"]), static_cast<long long>((*result)["from_step"].get<Step>()),
                ok ? ((*result)["compared"] == "all" ? "all digests agree" : "all batches agree (states were not compared: function.reduction fast promises no bits for another number of workers)") : ("DIFFERENT at " + (*result)["differing"].dump() + "; state after it " + text_at(*result, "/state_digest_after") + ", the run has " + text_at(*result, "/expected_after", "none")).c_str());
  return ok ? exit_codes::kDone : exit_codes::kDataCorrupt;
}

}  // namespace tessera::cli
