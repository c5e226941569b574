#include <ATen/Parallel.h>
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <iostream>

#include "common/file.h"
#include "worker/evaluate/commands.h"
#include "worker/evaluate/linear.h"

namespace tessera::evaluate {
namespace {

int failed(const Error& error) {
  std::cerr << "tessera evaluate: " << error.message << "\n";
  return exit_code_of(error);
}

void print_table(const nlohmann::ordered_json& result) {
  std::printf("%-10s %9s %9s %13s %9s\n", "label", "probe", "+- error", "random init", "pixels");
  for (const auto& [label, p] : result["probes"].items()) {
    const bool baselines = p.contains("baselines");
    std::printf("%-10s %8.1f%% %8.1f%% %12.1f%% %8.1f%%\n", label.c_str(), 100 * p["value"].get<double>(), 100 * p["standard_error"].get<double>(),
                baselines ? 100 * p["baselines"]["random_init"].get<double>() : std::nan(""), baselines ? 100 * p["baselines"]["pixels"].get<double>() : std::nan(""));
  }
}

}  // namespace

int evaluate_main(int argc, char** argv) {
  CLI::App app{"Evaluates a model's frozen features"};
  std::string protocol, model_path, label;
  LinearOptions options;
  bool json = false, no_baselines = false;
  app.add_option("protocol", protocol, "linear, count (the label count) or distance (the label distance)")->required()->check(CLI::IsMember({"linear", "count", "distance"}));
  app.add_option("model", model_path, "checkpoint folder or run")->required();
  app.add_option("--data", options.data, "labelled data: folder of images, tar shards, or scenes:N")->required();
  app.add_option("--test-data", options.test_data, "labelled test data; default: held out of --data");
  app.add_option("--train-images", options.train_images, "at most so many to train on")->check(CLI::Range(10, 100000000));
  app.add_option("--test-images", options.test_images, "at most so many to test on")->check(CLI::Range(10, 100000000));
  app.add_option("--encoder", options.encoder, "target or context")->check(CLI::IsMember({"target", "context"}));
  app.add_option("--label", label, "only this label");
  app.add_option("--seed", options.seed, "of the split");
  app.add_option("--threads", options.threads, "compute threads")->check(CLI::Range(1, 1024));
  app.add_flag("--no-baselines", no_baselines, "leave out random initialisation and pixels");
  app.add_flag("--json", json, "one JSON object on the last line of stdout");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : exit_codes::kUsage;
  }
  at::set_num_threads(options.threads);
  options.baselines = !no_baselines;
  if (protocol != "linear") label = protocol;
  if (!label.empty()) options.labels = {label};
  auto model = load_model(model_path);
  if (!model) return failed(model.error());
  auto result = evaluate_linear(*model, options);
  if (!result) return failed(result.error());
  if (!model->run_dir.empty()) {
    const std::string folder = model->run_dir + "/evaluation", file = folder + "/" + protocol + "-step-" + std::to_string(model->state.step) + ".json";
    if (auto made = make_folders(folder); !made) return failed(made.error());
    if (auto written = write_file_atomic(file, result->dump(1) + "\n"); !written) return failed(written.error());
  }
  if (json) std::cout << result->dump() << std::endl;
  else print_table(*result);
  return 0;
}

}  // namespace tessera::evaluate
