#include "ops/cli/online_evaluation.h"

#include <filesystem>
#include <fstream>
#include <poll.h>
#include <thread>

#include "common/clock.h"
#include "common/file.h"
#include "ops/cli/checkpoint_files.h"
#include "ops/cli/helpers.h"
#include "ops/cli/output.h"

namespace tessera::cli {

namespace fs = std::filesystem;

namespace {

// nice weighs a process against its own session only where the kernel groups by sessions (kernel.sched_autogroup_enabled): there the session gets
// the lowest weight too when trainers want all cores.
constexpr const char* kLowest = R"(echo 19 2>/dev/null >/proc/self/autogroup; exec nice -n 19 "$@")";
constexpr const char* kLow = R"(exec nice -n 19 "$@")";

}  // namespace

OnlineEvaluation::OnlineEvaluation(const OperationConfig& operation, std::string run_dir, std::string data)
    : every_(operation.evaluate.every_steps),
      train_images_(std::to_string(operation.evaluate.train_images)),
      test_images_(std::to_string(operation.evaluate.test_images)),
      run_dir_(std::move(run_dir)),
      data_(std::move(data)),
      test_data_(operation.evaluate.test_data),
      cores_taken_(operation.workers * operation.compute_threads >= int64_t(std::thread::hardware_concurrency())) {
  if (every_ == 0) return;
  if (const CheckpointInfo newest = newest_checkpoint(run_dir_); newest.ok) last_ = newest.step;  // of an earlier start
}

OnlineEvaluation::~OnlineEvaluation() {
  child_.reset();  // killed: an answer after the end would surprise
  std::error_code ignored;
  fs::remove_all(run_dir_ + "/evaluation/.at-work", ignored);
}

std::vector<ProbeNews> OnlineEvaluation::tick() {
  std::vector<ProbeNews> news;
  if (every_ == 0) return news;
  ChildExit exit;
  if (child_ && child_->poll_exit(&exit)) news = ended(exit);
  if (!child_)
    if (const std::string checkpoint = due(); !checkpoint.empty()) start(checkpoint, news);
  return news;
}

std::vector<ProbeNews> OnlineEvaluation::finish(Millis at_most_ms) {
  const Millis deadline = monotonic_ms() + at_most_ms;
  if (child_) std::ofstream("/proc/" + std::to_string(child_->pid()) + "/autogroup") << 0 << std::flush;  // nothing trains any more
  ChildExit exit;
  while (child_ && monotonic_ms() < deadline) {
    if (child_->poll_exit(&exit)) return ended(exit);
    pollfd wait{child_->descriptor(), POLLIN, 0};
    poll(&wait, 1, 500);
  }
  return {};
}

// The newest checkpoint at a multiple of every_steps that has not been looked at. Older ones are skipped: a slow probe
// falls behind, it does not pile up.
std::string OnlineEvaluation::due() const {
  const auto folders = checkpoint_folders(run_dir_);
  if (!folders) return "";
  for (auto it = folders->rbegin(); it != folders->rend(); ++it) {
    const CheckpointInfo info = inspect_checkpoint(*it, Depth::kManifest);
    if (info.step <= last_) return "";
    if (info.ok && info.step % every_ == 0) return *it;
  }
  return "";
}

// The checkpoint may be retired while it is read, so it is linked to a place of its own first.
void OnlineEvaluation::start(const std::string& checkpoint, std::vector<ProbeNews>& news) {
  const CheckpointInfo info = inspect_checkpoint(checkpoint, Depth::kManifest);
  last_ = step_ = info.step;
  const std::string place = run_dir_ + "/evaluation/.at-work";
  std::error_code error;
  fs::remove_all(place, error);
  fs::create_directories(run_dir_ + "/evaluation", error);
  fs::copy(checkpoint, place, fs::copy_options::recursive | fs::copy_options::create_hard_links, error);
  const auto program = helper_path("tessera-model");
  if (error || !program) return news.push_back({"warning", "no probe of step " + std::to_string(step_) + ": " + (program ? error.message() : program.error().message)});
  SpawnOptions options;
  options.command = {"/bin/sh", "-c", cores_taken_ ? kLowest : kLow, "probe", *program, "evaluate", "linear", place, "--data", data_, "--train-images", train_images_, "--test-images", test_images_, "--no-baselines", "--knn", "20", "--threads", "1",
                     "--out", run_dir_ + "/evaluation/online-step-" + std::to_string(step_) + ".json"};
  if (!test_data_.empty()) options.command.insert(options.command.end(), {"--test-data", test_data_});
  options.output_file = run_dir_ + "/logs/evaluation.out";
  options.own_session = true;
  auto child = Child::spawn(options);
  if (!child) return news.push_back({"warning", "no probe of step " + std::to_string(step_) + ": " + child.error().message});
  child_ = std::move(*child);
}

std::vector<ProbeNews> OnlineEvaluation::ended(const ChildExit& exit) {
  child_.reset();
  const std::string what = "probe at step " + std::to_string(step_);
  const auto text = read_file(run_dir_ + "/evaluation/online-step-" + std::to_string(step_) + ".json");
  const Json document = text ? Json::parse(*text, nullptr, false) : Json();
  if (exit.exit_code != 0 || !document.is_object()) return {{"warning", what + " failed (" + exit.cause + "); the run goes on. Its last lines:\n" + last_lines(run_dir_ + "/logs/evaluation.out", 3)}};
  std::string out;
  for (const auto& [label, probe] : document["probes"].items()) {
    char value[120];
    std::snprintf(value, sizeof value, "%s%s %.1f %% (k-NN %.1f %%)", out.empty() ? "" : ", ", label.c_str(), 100 * probe["value"].get<double>(), 100 * probe["knn"]["value"].get<double>());
    out += value;
  }
  const Json& monitors = document["monitors"];
  char rank[48];
  std::snprintf(rank, sizeof rank, "effective rank %.1f", monitors["effective_rank"].get<double>());
  std::vector<ProbeNews> news{{"info", what + ": " + out + "; " + rank}};
  const bool collapsed = monitors["collapsed"].get<bool>();
  if (collapsed && !collapsed_)
    news.push_back({"warning", what + ": the features of all images are all but the same (" + rank + "), the run has collapsed; raise optimizer.ema, lower the learning rate or lengthen the warm-up"});
  collapsed_ = collapsed;
  return news;
}

}  // namespace tessera::cli
