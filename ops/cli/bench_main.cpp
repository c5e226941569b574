#include <CLI/CLI.hpp>
#include <cstdio>

#include "ops/cli/bench_train.h"

namespace tessera::cli {
namespace {

void add_options(CLI::App& app, BenchTrainOptions& o) {
  app.add_option("--config", o.config, "a configuration instead of the model options")->check(CLI::ExistingFile);
  app.add_option("--set", o.overrides, "KEY=VALUE of the configuration")->take_all()->allow_extra_args(false);
  app.add_option("--data", o.data, "as operation.data_path; default: the configuration's, else procedural scenes");
  app.add_option("--model", o.model, "vit_tiny ... vit_giant")->capture_default_str();
  app.add_option("--patch", o.patch)->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--size", o.size, "image size")->check(CLI::Range(16, 4096))->capture_default_str();
  app.add_option("--tile", o.tile, "images of a tile")->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("--tiles", o.tiles, "tiles of a step")->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("--precision", o.precision)->check(CLI::IsMember({"fp32", "bf16", "published"}))->capture_default_str();
  app.add_option("--predictor-depth", o.predictor_depth)->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--predictor-dim", o.predictor_dim)->check(CLI::Range(1, 100000))->capture_default_str();
  app.add_option("--workers", o.workers)->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--threads", o.threads, "compute threads of a worker")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--loaders", o.loaders)->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--loader-threads", o.loader_threads)->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--steps", o.steps, "measured steps")->check(CLI::Range(1, 1000000))->capture_default_str();
  app.add_option("--warm-up", o.warm_up, "steps before them")->check(CLI::Range(0, 1000000))->capture_default_str();
  app.add_option("--peak-tflops", o.peak_tflops, "of one worker, for the utilisation; default: a matrix product measured in this run")->check(CLI::PositiveNumber);
}

std::string text_of(const Json& r) {
  char text[400];
  const Json& split = r["split"];
  std::snprintf(text, sizeof text, "%.1f images/s (%.1f to %.1f), %.3f s a step, %.3f TFLOP/s, utilisation %.0f %%, trainer %.0f MB, loader %.0f MB\ntime: data %.1f %%, compute %.1f %%, communication exposed %.1f %%, checkpoint %.1f %%",
                r["images_per_second"]["mean"].get<double>(), r["images_per_second"]["min"].get<double>(), r["images_per_second"]["max"].get<double>(), r["seconds_per_step"].get<double>(), r["tflops"].get<double>(),
                r["mfu"].is_number() ? 100 * r["mfu"].get<double>() : 0.0, double(r["memory_bytes"]["trainer"].get<int64_t>()) / 1e6, double(r["memory_bytes"]["loader"].get<int64_t>()) / 1e6, 100 * split["data"].get<double>(),
                100 * split["compute"].get<double>(), 100 * split["communication_exposed"].get<double>(), 100 * split["checkpoint"].get<double>());
  std::string out = text;
  if (split.contains("target")) {
    std::snprintf(text, sizeof text, "\ncompute, in the proportions of one tile alone: target %.1f %%, context %.1f %%, predictor %.1f %%, backward %.1f %%, update %.1f %%", 100 * split["target"].get<double>(), 100 * split["context"].get<double>(),
                  100 * split["predictor"].get<double>(), 100 * split["backward"].get<double>(), 100 * split["update"].get<double>());
    out += text;
  }
  if (r["loader"].contains("advice")) out += "\n" + r["loader"]["advice"].get<std::string>();
  return out;
}

}  // namespace

int bench_train_main(const std::vector<std::string>& words) {
  CLI::App app{"The speed of a whole run on this machine: loaders, trainers and coordinator as processes"};
  app.name("tessera bench train");
  BenchTrainOptions options;
  bool json = false;
  add_options(app, options);
  app.add_flag("--json", json, "one JSON object on the last line");
  try {
    std::vector<std::string> reversed(words.rbegin(), words.rend());
    app.parse(reversed);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : exit_codes::kUsage;
  }
  SignalWatch signals;
  const auto result = bench_train(options, signals);
  if (!result) return report(result.error(), json ? Format::kJson : Format::kText);
  if (json) print_json(*result);
  else std::printf("%s\n", text_of(*result).c_str());
  return 0;
}

}  // namespace tessera::cli
