#include "coordinator/recover.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "common/file.h"
#include "common/sealed_json.h"

namespace tessera::coordinator {
namespace {

using nlohmann::json;

std::optional<RecoveredStep> parse_line(const std::string& line) {
  const json row = json::parse(line, nullptr, false);
  if (!row.is_object() || !row.contains("step") || !row["step"].is_number_integer()) return std::nullopt;
  RecoveredStep out;
  const auto batch = state_digest_from_hex(row.value("batch_digest", "")), state = state_digest_from_hex(row.value("state_digest", "")), gradient = state_digest_from_hex(row.value("gradient_digest", ""));
  if (!batch || !state || !gradient) return std::nullopt;
  out.step = row["step"].get<Step>();
  out.batch = *batch, out.state = *state, out.gradient = *gradient;
  out.loss = row["loss"].is_number() ? row["loss"].get<double>() : 0;
  out.skipped = row.value("skipped", false);
  out.generation = row.value("generation", "");
  return out;
}

// By step; a line that was written twice counts once, a torn one not at all.
std::map<Step, RecoveredStep> read_lines(const std::string& path) {
  std::map<Step, RecoveredStep> out;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (const auto step = parse_line(line)) out.emplace(step->step, *step);
  return out;
}

}  // namespace

Result<std::optional<RecoveredRun>> recover_run(const std::string& run_dir, const std::map<Step, CheckpointEntry>& checkpoints, const std::string& function_id) {
  const CheckpointEntry* newest = nullptr;
  for (const auto& [step, entry] : checkpoints)
    if (entry.ok) newest = &entry;
  if (!newest) return std::nullopt;
  TESSERA_ASSIGN(const std::string text, read_file(newest->path + "/manifest.json"));
  TESSERA_ASSIGN(const json manifest, open_sealed_json(text, newest->path + "/manifest.json"));
  if (const std::string theirs = manifest.value("function_id", ""); theirs != function_id)
    return fail(ErrorCode::kFixConfig, "[coordinator] " + newest->path + " belongs to another function (" + theirs + ") than this configuration (" + function_id + "), and state.db is gone; undo the change, or start with --fresh");
  RecoveredRun run;
  run.lineage = manifest.value("lineage", ""), run.numerics_class = manifest.value("numerics_class", "");
  const auto lines = read_lines(run_dir + "/metrics.jsonl");
  // The run of steps that reaches the checkpoint, from its beginning on.
  Step first = newest->step;
  while (first > 0 && lines.contains(first - 1)) --first;
  run.root = first;
  for (Step step = first; lines.contains(step); ++step) run.steps.push_back(lines.at(step));
  return run;
}

}  // namespace tessera::coordinator
