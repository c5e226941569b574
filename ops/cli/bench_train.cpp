#include "ops/cli/bench_train.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <map>
#include <thread>
#include <unistd.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/model_size.h"
#include "common/process_usage.h"
#include "ops/cli/helpers.h"
#include "ops/cli/run_folder.h"

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;
constexpr int kSampleMs = 250;
constexpr double kStarved = 0.01;  // of the wall time: what is below is no finding

double number(const Json& at, const char* outer, const char* inner) { return at.at(outer).at(inner).get<double>(); }

// Looks at the descendants of this process until told to stop.
class Watcher {
 public:
  Watcher() : thread_([this](std::stop_token stop) { while (!stop.stop_requested()) look(), std::this_thread::sleep_for(std::chrono::milliseconds(kSampleMs)); }) {}
  RunUse stop() {
    thread_.request_stop(), thread_.join();
    RunUse use;
    for (const auto& [pid, seen] : seen_) {
      ProcessUse& kind = seen.name == "tessera-loader" ? use.loaders : use.trainers;
      kind.peak_bytes = std::max(kind.peak_bytes, seen.peak);
      kind.cpu_seconds += seen.last - seen.first;
      use.watched_seconds = std::max(use.watched_seconds, seen.until - seen.from);
    }
    return use;
  }

 private:
  struct Seen {
    std::string name;
    int64_t peak = 0;
    double first = 0, last = 0, from = 0, until = 0;
  };
  void look() {
    std::map<pid_t, ProcessUsage> all;
    std::error_code none;
    for (const auto& entry : fs::directory_iterator("/proc", none)) {
      const std::string pid = entry.path().filename();
      if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
      if (const auto usage = process_usage(pid_t(std::stoi(pid)))) all[pid_t(std::stoi(pid))] = *usage;
    }
    for (const auto& [pid, usage] : all) {
      if (usage.name != "tessera-loader" && usage.name != "tessera-trainer") continue;
      pid_t up = pid;
      while (up > 1 && up != ::getpid() && all.contains(up)) up = all[up].parent;
      if (up != ::getpid()) continue;
      const double now = monotonic_seconds();
      auto [at, fresh] = seen_.try_emplace(pid, Seen{usage.name, 0, usage.cpu_seconds, 0, now, now});
      at->second.last = usage.cpu_seconds, at->second.until = now;
      at->second.peak = std::max(at->second.peak, peak_resident_bytes(pid));
    }
  }
  std::map<pid_t, Seen> seen_;
  std::jthread thread_;
};

std::string model_yaml(const BenchTrainOptions& o) {
  return "function:\n  model: {name: " + o.model + ", patch_size: " + std::to_string(o.patch) + ", image_size: " + std::to_string(o.size) + "}\n  predictor: {embed_dim: " + std::to_string(o.predictor_dim) +
         ", depth: " + std::to_string(o.predictor_depth) + "}\n  masks: {min_keep: 0}\n  batch: {tile_size: " + std::to_string(o.tile) + ", tiles: " + std::to_string(o.tiles) + "}\n  precision: " + o.precision + "\n";
}

// The settings that make it a measurement: no checkpoints in between, no evaluation, a folder of its own.
std::vector<std::string> settings(const BenchTrainOptions& o, const Config& config, const std::string& folder) {
  const int64_t steps = o.steps + o.warm_up, images = config.function.batch.global() * 4;
  const std::string data = !o.data.empty() ? o.data : !o.config.empty() && !config.operation.data_path.empty() ? config.operation.data_path : "scenes:" + std::to_string(std::max<int64_t>(images, 64)) + ":" + std::to_string(config.function.model.image_size);
  std::vector<std::string> out = o.overrides;
  for (const std::string& setting : {"function.steps=" + std::to_string(steps), std::string("function.warmup_steps=1"), "operation.data_path=" + data, "operation.run_dir=" + folder + "/runs/bench",
                                     std::string("operation.checkpoint.every_steps=0"), std::string("operation.evaluate.every_steps=0"), std::string("operation.evaluate.at_end=none"), "operation.compute_threads=" + std::to_string(o.threads),
                                     "operation.loader_threads=" + std::to_string(o.loader_threads), "operation.workers=" + std::to_string(o.workers), "operation.loaders=" + std::to_string(o.loaders)})
    out.push_back(setting);
  return out;
}

std::vector<std::string> with_settings(std::vector<std::string> words, const std::vector<std::string>& settings) {
  for (const std::string& setting : settings) words.insert(words.end(), {"--set", setting});
  return words;
}

Result<Json> measure(const BenchTrainOptions& o, const std::string& folder, SignalWatch& signals) {
  std::string path = o.config;
  if (path.empty()) {
    path = folder + "/bench.yaml";
    TESSERA_TRY(write_file_atomic(path, model_yaml(o)));
  }
  TESSERA_ASSIGN(Config config, load_config(path, o.overrides, {}));
  const std::vector<std::string> set = settings(o, config, folder);
  TESSERA_ASSIGN(config, load_config(path, set, {}));
  const std::string resolved = folder + "/step.yaml";
  TESSERA_TRY(write_file_atomic(resolved, print_resolved(config)));
  say("bench train: one tile alone");
  TESSERA_ASSIGN(const Json step, run_helper("tessera-model", {"bench", "step", "--config", resolved, "--threads", std::to_string(o.threads), "--repeats", "3", "--json"}, signals));
  say("bench train: " + std::to_string(o.warm_up + o.steps) + " steps of " + std::to_string(config.function.batch.global()) + " images");
  Watcher watcher;
  const auto ran = run_helper("tessera", with_settings({"up", path, "--fresh", "--json"}, set), signals);
  const RunUse use = watcher.stop();
  if (!ran) return tl::unexpected(ran.error());
  const std::vector<Json> steps = read_json_lines(folder + "/runs/bench/metrics.jsonl");
  if (int64_t(steps.size()) <= o.warm_up) return fail(ErrorCode::kUnavailable, "[bench train] the run ended after " + std::to_string(steps.size()) + " steps; nothing is left to measure behind " + std::to_string(o.warm_up));
  const double peak = o.peak_tflops > 0 ? o.peak_tflops : step.value("product_tflops", 0.0);
  Json report = train_report(steps, o.warm_up, use, config.function, o.workers, peak, step.value("split", Json::object()));
  report["peak"] = {{"tflops", peak}, {"source", o.peak_tflops > 0 ? "given" : "a matrix product in this run, one worker"}};
  report["settings"] = {{"model", config.function.model.name}, {"precision", config.function.precision}, {"size", config.function.model.image_size}, {"tile", config.function.batch.tile_size}, {"tiles", config.function.batch.tiles},
                        {"workers", o.workers}, {"threads", o.threads}, {"loaders", o.loaders}, {"loader_threads", o.loader_threads}, {"steps", o.steps}, {"warm_up", o.warm_up}, {"data", config.operation.data_path}};
  return report;
}

}  // namespace

Json train_report(const std::vector<Json>& steps, int64_t warm_up, const RunUse& use, const FunctionConfig& function, int64_t workers, double product_tflops, const Json& shares) {
  const size_t first = size_t(warm_up), count = steps.size() - first;
  double data = 0, compute = 0, communication = 0, checkpoint = 0, total = 0;
  std::vector<double> speeds;
  for (size_t i = first; i < steps.size(); ++i) {
    data += number(steps[i], "seconds", "data"), compute += number(steps[i], "seconds", "compute"), communication += number(steps[i], "seconds", "communication");
    checkpoint += number(steps[i], "seconds", "checkpoint"), total += number(steps[i], "seconds", "total");
    speeds.push_back(steps[i].at("images_per_second").get<double>());
  }
  std::sort(speeds.begin(), speeds.end());
  const double images = double(function.batch.global()) * double(count), wall = std::max(total, 1e-9), speed = images / wall;
  const double tflops = image_flops(function, expected_mask_lengths(function)).total() * speed / 1e12;
  Json split{{"data", data / wall}, {"compute", compute / wall}, {"communication_exposed", communication / wall}, {"checkpoint", checkpoint / wall}};
  // What compute holds, in the proportions of a tile alone: a trainer does not look at its watch within a tile.
  double parts = 0;
  for (const char* part : {"target", "context", "predictor", "backward", "update"}) parts += shares.is_object() && shares.contains("backward") ? shares.value(part, 0.0) : 0.0;  // on a GPU only the whole is known
  if (parts > 0)
    for (const char* part : {"target", "context", "predictor", "backward", "update"}) split[part] = compute / wall * shares.value(part, 0.0) / parts;
  // Loaders: how many cores they used, and would have to, were training never to wait.
  const double starvation = data / wall, used = use.watched_seconds > 0 ? use.loaders.cpu_seconds / use.watched_seconds : 0, wanted = used / std::max(1e-9, 1 - starvation);
  Json loader{{"starvation", starvation}, {"cores_used", used}, {"cores_missing", starvation > kStarved ? Json(wanted - used) : Json(0.0)}};
  if (starvation > kStarved) {
    char text[200];
    std::snprintf(text, sizeof text, "training waited for data %.1f %% of the time: loaders used %.2f cores and would need %.2f (operation.loader_threads, operation.loaders)", 100 * starvation, used, wanted);
    loader["advice"] = text;
  }
  return Json{{"images_per_second", {{"min", speeds.front()}, {"median", speeds[speeds.size() / 2]}, {"max", speeds.back()}, {"mean", speed}}},
              {"seconds_per_step", wall / double(count)},
              {"tflops", tflops},
              {"mfu", product_tflops > 0 ? Json(tflops / double(workers) / product_tflops) : Json(nullptr)},
              {"memory_bytes", {{"trainer", use.trainers.peak_bytes}, {"loader", use.loaders.peak_bytes}}},
              {"split", split},
              {"loader", loader}};
}

Result<Json> bench_train(const BenchTrainOptions& options, SignalWatch& signals) {
  std::string folder = (fs::temp_directory_path() / "tessera-bench-XXXXXX").string();
  if (!::mkdtemp(folder.data())) return fail(ErrorCode::kUnavailable, "[bench train] cannot make a folder below " + fs::temp_directory_path().string() + "; set TMPDIR to one that can be written");
  auto result = measure(options, folder, signals);
  std::error_code none;
  fs::remove_all(folder, none);
  return result;
}

}  // namespace tessera::cli
