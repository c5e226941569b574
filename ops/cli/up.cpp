#include "ops/cli/up.h"

#include <filesystem>
#include <optional>
#include <unistd.h>

#include "common/clock.h"
#include "common/config.h"
#include "common/file.h"
#include "ops/cli/checkpoint_files.h"
#include "ops/cli/helpers.h"
#include "ops/cli/http_client.h"
#include "ops/cli/local_cluster.h"
#include "ops/cli/online_evaluation.h"
#include "ops/cli/preflight.h"
#include "ops/cli/progress.h"
#include "ops/cli/run_folder.h"
#include "ops/cli/summary.h"

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;
constexpr int kPollMs = 250;
constexpr size_t kNoteBytes = 900;  // the coordinator takes 1000 characters
constexpr Millis kPlainLineMs = 2000, kSilentMs = 10000, kProbeMs = 600000;

// A run that was chosen and checked, ready to start.
struct Plan {
  Config config;
  std::vector<std::string> overrides;
  StartDecision start;
  Step total_steps = 0;  // of the whole schedule
};

Result<Config> load(const UpOptions& options, std::vector<std::string>& overrides) {
  overrides = options.overrides;
  if (options.workers > 0) overrides.push_back("operation.workers=" + std::to_string(options.workers));
  if (options.loaders > 0) overrides.push_back("operation.loaders=" + std::to_string(options.loaders));
  if (options.steps > 0) overrides.push_back("operation.stop_at_step=" + std::to_string(options.steps));
  TESSERA_ASSIGN(Config config, load_config(options.config_path, overrides, process_environment()));
  OperationConfig& operation = config.operation;
  if (operation.run_id == "auto") operation.run_id = config.source_name;
  if (operation.run_dir == "auto") operation.run_dir = "runs/" + operation.run_id;
  return config;
}

RunOnDisk look_at(const std::string& run_dir) {
  RunOnDisk out;
  out.exists = holds_run(run_dir);
  if (!out.exists) return out;
  const CheckpointInfo newest = newest_checkpoint(run_dir);
  out.newest_checkpoint = newest.ok ? newest.step : -1;
  if (const auto config = load_config(run_dir + "/config.yaml", {})) out.function_id = to_hex(function_id(config->function));
  const auto address = read_address(run_dir);
  if (!address || !process_exists(address->pid)) return out;
  const auto status = get_json(address->http + "/api/v1/status", std::chrono::seconds(2));
  if (status && text_at(*status, "/run/id") == address->run_id) out.answers_at = address->http;
  return out;
}

Result<Plan> make_plan(const UpOptions& options, SignalWatch& signals) {
  Plan plan;
  TESSERA_ASSIGN(plan.config, load(options, plan.overrides));
  const OperationConfig& operation = plan.config.operation;
  const RunOnDisk on_disk = look_at(operation.run_dir);
  std::optional<DataFacts> data;
  plan.total_steps = plan.config.function.steps;
  const auto index = [&]() -> Status {
    if (operation.data_path.starts_with("scenes:")) say("preparing " + operation.data_path + " (procedural images, made once)");
    TESSERA_ASSIGN(data, index_data(plan.config, (fs::path(operation.run_dir).parent_path() / ".manifests").string(), signals));
    TESSERA_ASSIGN(const RunLength length, run_length(plan.config.function, data->sample_count));
    plan.total_steps = length.total_steps;
    return {};
  };
  if (plan.total_steps == 0) TESSERA_TRY(index());  // the length depends on the data
  StartRequest request{options.mode, options.command, operation.run_id, operation.run_dir, to_hex(function_id(plan.config.function)), plan.total_steps};
  if (operation.stop_at_step > 0) request.goal = std::min(request.goal, operation.stop_at_step);
  TESSERA_ASSIGN(plan.start, decide_start(request, on_disk, holds_run));
  if (plan.start.action == StartAction::kShowSummary) return plan;
  TESSERA_TRY(check_programs());
  TESSERA_TRY(check_devices(operation, count_gpus("/dev")));
  TESSERA_TRY(check_ports(operation));
  TESSERA_TRY(check_disk(plan.config, plan.start.run_dir));
  if (!data) TESSERA_TRY(index());
  if (!options.from.empty()) {
    const CheckpointInfo root = inspect_checkpoint(options.from, Depth::kManifest);
    if (!root.ok) return fail(ErrorCode::kFixData, options.from + ": " + root.reason);
    if (root.step >= plan.total_steps)
      return fail(ErrorCode::kFixConfig, options.from + " is at step " + std::to_string(root.step) + ", the run has " + std::to_string(plan.total_steps) + " steps; raise function.steps or function.epochs, or import with --steps-per-epoch of this dataset");
  }
  return plan;
}

// Shows a running cluster until its coordinator ends.
class Watch {
 public:
  Watch(LocalCluster& cluster, OnlineEvaluation& evaluation, SignalWatch& signals, RunAddress address) : cluster_(cluster), evaluation_(evaluation), signals_(signals), address_(std::move(address)), first_signals_(signals.count()) {}

  void run() {
    while (!cluster_.ended()) {
      cluster_.wait(kPollMs);
      for (const std::string& line : cluster_.take_news()) say("  " + line);
      for (const ProbeNews& news : evaluation_.tick()) tell(news);
      if (cluster_.ended()) break;
      follow_signals();
      if (!killed_) show();
    }
  }
  const Json& last_status() const { return status_; }
  bool killed() const { return killed_; }

 private:
  // Into the run's events, from where warnings come back to show_events(); what the coordinator does not take is said here.
  void tell(const ProbeNews& news) {
    const Json note{{"severity", news.severity}, {"text", news.text.substr(0, kNoteBytes)}};
    const bool told = !killed_ && post(address_.http + "/api/v1/note", address_.token, note.dump(-1, ' ', false, Json::error_handler_t::replace), std::chrono::seconds(2)).has_value();
    if (!told || std::string(news.severity) == "info") say("  " + news.text);
  }

  void follow_signals() {
    const int count = signals_.count() - first_signals_;
    if (count >= 2 && !killed_) {
      say("stopping now");
      killed_ = true;
      cluster_.kill_all();
    } else if (count == 1 && !asked_) {
      asked_ = true;
      cluster_.expect_end();
      say("stopping: the run finishes its step and writes a checkpoint (Ctrl-C again: stop now)");
      if (!post(address_.http + "/api/v1/stop", address_.token)) cluster_.ask_to_stop();
    }
  }

  void show() {
    auto status = get_json(address_.http + "/api/v1/status", std::chrono::seconds(2));
    const Millis now = monotonic_ms();
    if (status) {
      status_ = std::move(*status);
      heard_ = now;
      show_events();
    } else if (heard_ >= 0 && now - heard_ < kSilentMs) {
      return;  // it is busy, or about to end
    }
    const std::string line = status ? status_line(status_) : "the coordinator does not answer: " + status.error().message;
    if (terminal_) return progress_line(line);
    if (line == printed_ || (printed_at_ >= 0 && now - printed_at_ < kPlainLineMs)) return;
    printed_ = line;
    printed_at_ = now;
    say(line);
  }

  // Warnings and errors of the run, as they happen.
  void show_events() {
    const auto document = get_json(address_.http + "/api/v1/events?after=" + std::to_string(last_event_), std::chrono::seconds(2));
    if (!document || !document->contains("events")) return;
    for (const Json& event : (*document)["events"]) {
      last_event_ = std::max(last_event_, int64_t(number_at(event, "/id")));
      if (text_at(event, "/severity") != "info") say("  " + event_line(event));
    }
  }

  LocalCluster& cluster_;
  OnlineEvaluation& evaluation_;
  SignalWatch& signals_;
  RunAddress address_;
  int first_signals_;
  const bool terminal_ = stderr_is_terminal();
  bool asked_ = false, killed_ = false;
  Json status_;
  Millis heard_ = -1, printed_at_ = -1;
  std::string printed_;
  int64_t last_event_ = 0;
};

const std::string& probe_data(const OperationConfig& operation) { return operation.evaluate.train_data.empty() ? operation.data_path : operation.evaluate.train_data; }

Json evaluate_at_end(const Plan& plan, SignalWatch& signals) {
  const OperationConfig& operation = plan.config.operation;
  const std::string& data = probe_data(operation);
  say("evaluating: linear probe of the target encoder, of random weights and of pixels");
  std::vector<std::string> arguments{"evaluate", "linear", plan.start.run_dir, "--data", data, "--train-images", std::to_string(operation.evaluate.train_images),
                                     "--test-images", std::to_string(operation.evaluate.test_images), "--json"};
  if (!operation.evaluate.test_data.empty()) arguments.insert(arguments.end(), {"--test-data", operation.evaluate.test_data});
  auto result = run_helper("tessera-model", arguments, signals);
  if (!result) {
    say("the evaluation failed, the run itself is done: " + result.error().message);
    return nullptr;
  }
  say(evaluation_table(*result));
  if (auto picture = run_helper("tessera-model", {"visualize", "masks", plan.start.run_dir, "--data", data}, signals); !picture)
    say("no picture of the masks: " + picture.error().message);
  return *result;
}

void print_summary(const Json& summary, Format format) {
  say(summary_text(summary));
  if (format == Format::kJson) print_json(summary);
}

// Of a run that stands where it was told to stop, short of its length.
std::string how_to_go_on(const Plan& plan, const UpOptions& options) {
  const std::string where = "it stops at step " + human_count(plan.config.operation.stop_at_step) + " of " + human_count(plan.total_steps) + ", as it was told to; ";
  return where + (options.steps > 0 ? "go on with it: " + options.onward + " --resume" : "raise operation.stop_at_step to go on with it");
}
bool told_to_stop_at(const Plan& plan, int64_t step) {
  const int64_t stop = plan.config.operation.stop_at_step;
  return stop > 0 && step >= stop && step < plan.total_steps;
}

int summary_of_finished(const Plan& plan, const UpOptions& options) {
  const std::string& dir = plan.start.run_dir;
  Json evaluation;
  if (const auto status = read_last_status(dir); status && status->contains("evaluation") && !(*status)["evaluation"].empty()) evaluation = (*status)["evaluation"];
  const Json summary = summarise(plan.start.run_id, dir, nullptr, 0, evaluation);
  if (told_to_stop_at(plan, int64_t(number_at(summary, "/step")))) say("run " + plan.start.run_id + " is there already: " + how_to_go_on(plan, options));
  else say("run " + plan.start.run_id + " is finished already; `--fresh` starts a new one beside it");
  print_summary(summary, options.format);
  return exit_codes::kDone;
}

Result<int> run(const UpOptions& options, SignalWatch& signals) {
  TESSERA_ASSIGN(const Plan plan, make_plan(options, signals));
  if (plan.start.action == StartAction::kShowSummary) return summary_of_finished(plan, options);
  const OperationConfig& operation = plan.config.operation;
  const double started = monotonic_seconds();
  ::unlink((plan.start.run_dir + "/status.json").c_str());  // of an earlier start
  TESSERA_ASSIGN(const auto cluster, LocalCluster::start({options.config_path, plan.overrides, plan.start.run_id, plan.start.run_dir, plan.start.action == StartAction::kResume, options.from, operation.workers,
                                                          operation.loaders, operation.loader_threads, operation.device}, signals));
  TESSERA_ASSIGN(const RunAddress address, read_address(plan.start.run_dir));
  say("run " + plan.start.run_id + (plan.start.action == StartAction::kResume ? " goes on" : "") + "; status: " + address.http + "/  folder: " + plan.start.run_dir);
  OnlineEvaluation evaluation(operation, plan.start.run_dir, probe_data(operation));
  Watch watch(*cluster, evaluation, signals, address);
  watch.run();
  const int code = watch.killed() ? exit_codes::kDrained : cluster->end().exit_code;
  if (!cluster->end().reason.empty()) say("tessera: " + cluster->end().reason);
  const double seconds = monotonic_seconds() - started;
  Json summary = summarise(plan.start.run_id, plan.start.run_dir, watch.last_status(), seconds, nullptr);
  for (const ProbeNews& news : evaluation.tick()) say("  " + news.text);
  if (code == exit_codes::kDone)
    for (const ProbeNews& news : evaluation.finish(kProbeMs)) say("  " + news.text);
  const bool complete = code == exit_codes::kDone && int64_t(number_at(summary, "/step")) >= plan.total_steps;
  if (complete && operation.evaluate.at_end == "linear") summary["evaluation"] = evaluate_at_end(plan, signals);
  print_summary(summary, options.format);
  if (code == exit_codes::kDone && told_to_stop_at(plan, int64_t(number_at(summary, "/step")))) say(how_to_go_on(plan, options));
  else if (code != exit_codes::kDone || !complete) say("go on with it: " + options.command + " --resume");
  return code;
}

}  // namespace

int up_command(const UpOptions& options) {
  SignalWatch signals;
  const auto code = run(options, signals);
  return code ? *code : report(code.error(), options.format);
}

}  // namespace tessera::cli
