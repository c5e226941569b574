#include "ops/cli/summary.h"

#include <cmath>
#include <filesystem>

#include "ops/cli/checkpoint_files.h"
#include "ops/cli/progress.h"
#include "ops/cli/run_folder.h"

namespace tessera::cli {
namespace {

Json or_null(double value) { return std::isnan(value) ? Json(nullptr) : Json(value); }

}  // namespace

Json summarise(const std::string& run_id, const std::string& run_dir, const Json& last_status, double seconds, const Json& evaluation) {
  Json status = last_status;
  if (const auto written = read_last_status(run_dir)) status = *written;
  const auto address = read_address(run_dir);
  const CheckpointInfo newest = newest_checkpoint(run_dir);
  const auto step = int64_t(number_at(status, "/progress/step", double(newest.step)));
  Json out{{"run_id", run_id}, {"run_dir", run_dir}, {"status_url", address ? Json(address->http) : Json(nullptr)}};
  out["step"] = step;
  out["total_steps"] = int64_t(number_at(status, "/progress/total_steps", double(step)));
  const bool at_end = newest.ok && newest.step == step;  // the checkpoint has the digest of the state after the last update
  out["state_digest"] = at_end ? newest.state_digest : text_at(status, "/digests/state_digest");
  const std::string chain = text_at(status, "/digests/batch_digest");
  out["batch_digest"] = chain.empty() && at_end ? newest.batch_digest : chain;
  out["loss"] = or_null(number_at(status, "/training/loss", NAN));
  out["images_per_second"] = or_null(number_at(status, "/throughput/images_per_second", NAN));
  out["seconds"] = seconds;
  out["generations"] = int64_t(number_at(status, "/run/generations", 0));
  out["checkpoints"] = Json::array();
  if (const auto folders = checkpoint_folders(run_dir))
    for (const std::string& folder : *folders) out["checkpoints"].push_back(to_json(inspect_checkpoint(folder, Depth::kManifest)));
  out["evaluation"] = evaluation;
  return out;
}

std::string summary_text(const Json& s) {
  const std::string run_dir = text_at(s, "/run_dir");
  std::string out = "run " + text_at(s, "/run_id") + ": step " + human_count(int64_t(number_at(s, "/step"))) + " of " + human_count(int64_t(number_at(s, "/total_steps")));
  char text[80];
  if (const double loss = number_at(s, "/loss", NAN); !std::isnan(loss)) std::snprintf(text, sizeof text, ", loss %.4f", loss), out += text;
  if (const double seconds = number_at(s, "/seconds"); seconds > 0) out += ", " + human_seconds(seconds);
  if (const double rate = number_at(s, "/images_per_second"); rate > 0) std::snprintf(text, sizeof text, ", %.0f images/s", rate), out += text;
  out += "\n";
  const Json& checkpoints = s["checkpoints"];
  if (!checkpoints.empty()) out += "  checkpoint    " + text_at(checkpoints.back(), "/path") + "\n";
  out += "  logs          " + run_dir + "/logs\n";
  if (std::filesystem::exists(run_dir + "/pictures")) out += "  pictures      " + run_dir + "/pictures\n";
  if (std::filesystem::exists(run_dir + "/evaluation")) out += "  evaluation    " + run_dir + "/evaluation\n";
  out += "  state_digest  " + text_at(s, "/state_digest") + "\n  batch_digest  " + text_at(s, "/batch_digest");
  return out;
}

}  // namespace tessera::cli
