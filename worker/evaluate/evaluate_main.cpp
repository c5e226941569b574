#include <ATen/Parallel.h>
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <iostream>

#include "common/file.h"
#include "worker/evaluate/attentive.h"
#include "worker/evaluate/commands.h"
#include "worker/evaluate/finetune.h"
#include "worker/evaluate/knn.h"
#include "worker/evaluate/linear.h"
#include "worker/evaluate/low_shot.h"
#include "worker/evaluate/monitors.h"
#include "worker/evaluate/report.h"
#include "worker/evaluate/segment.h"

namespace tessera::evaluate {
namespace {

// What the command line said; one protocol runs in a process.
struct Arguments {
  std::string model, encoder = "target", features = "last", label, out, masks;
  EvaluationOptions options;
  std::vector<std::string> also;
  std::vector<int64_t> seeds, ks;
  Shots shots;
  AttentiveOptions attentive;
  MonitorOptions monitors;
  ProbeRecipe probe;
  FinetuneOptions finetune;
  bool few_finetuned = false;
  std::string solver = "lbfgs";
  int64_t draws = 5, heads = 0;
  bool json = false, no_baselines = false;
};

void add_common(CLI::App& app, Arguments& a) {
  app.add_option("model", a.model, "run, checkpoint folder, Hugging Face folder or published .pth.tar")->required();
  app.add_option("--data", a.options.data, "labelled data: folder of images, tar shards, or scenes:N")->required();
  app.add_option("--test-data", a.options.test_data, "labelled test data; default: held out of --data");
  app.add_option("--train-images", a.options.train_images, "at most so many to train on")->check(CLI::Range(10, 100000000));
  app.add_option("--test-images", a.options.test_images, "at most so many to test on")->check(CLI::Range(10, 100000000));
  app.add_option("--encoder", a.encoder, "target or context")->check(CLI::IsMember({"target", "context"}));
  app.add_option("--label", a.label, "only this label");
  app.add_option("--seed", a.options.seed, "of the split");
  app.add_option("--threads", a.options.threads, "compute threads")->check(CLI::Range(1, 1024));
  app.add_option("--heads", a.heads, "attention heads of a published file of sizes that no variant has")->check(CLI::Range(1, 256));
  app.add_option("--out", a.out, "JSON file to write; default: evaluation/ of the run");
  app.add_flag("--no-baselines", a.no_baselines, "leave out random initialisation and pixels");
  app.add_flag("--json", a.json, "one JSON object on the last line of stdout");
}

void add_features(CLI::App& app, Arguments& a) {
  app.add_option("--features", a.features, "last: averaged tokens; last4: those of the last four blocks side by side")->check(CLI::IsMember({"last", "last4"}));
}

void add_seeds(CLI::App& app, Arguments& a) {
  app.add_option("--seeds", a.seeds, "several seeds a,b,c: the mean and its standard error over them")->delimiter(',');
  app.add_option("--also", a.also, "runs of the same recipe from other training seeds, a,b,c: the mean and its standard error over all")->delimiter(',');
}

void add_linear(CLI::App& app, Arguments& a) {
  add_features(app, a), add_seeds(app, a);
  app.add_option("--solver", a.solver, "lbfgs; sgd or lars with the published grid")->check(CLI::IsMember({"lbfgs", "sgd", "lars"}));
  app.add_option("--knn", a.probe.knn, "beside it, the vote of so many nearest neighbours on the same features")->check(CLI::Range(1, 100000));
  app.add_option("--epochs", a.probe.epochs, "of sgd and lars")->check(CLI::Range(1, 10000));
  app.add_option("--batch", a.probe.batch, "of sgd and lars")->check(CLI::Range(1, 1000000));
}

void add_finetune(CLI::App& app, Arguments& a) {
  app.add_option("--epochs", a.finetune.epochs, "over the training images")->check(CLI::Range(1, 10000));
  app.add_option("--batch", a.finetune.batch, "images a step")->check(CLI::Range(1, 65536));
  app.add_option("--lr", a.finetune.lr, "of the head; the encoder's by layer decay")->check(CLI::Range(1e-9, 10.0));
  app.add_option("--weight-decay", a.finetune.weight_decay, "of matrices")->check(CLI::Range(0.0, 10.0));
  app.add_option("--layer-decay", a.finetune.layer_decay, "rate of a block, of that of the block after it")->check(CLI::Range(0.0, 1.0));
  app.add_flag("--flip", a.finetune.flip, "turn half of the images left to right");
}

struct Protocol {
  const char* name;
  const char* help;
  const char* label;  // the only label; null: all
  void (*add)(CLI::App&, Arguments&);
};
constexpr Protocol kProtocols[] = {
    {"linear", "logistic regression on frozen features", nullptr, add_linear},
    {"count", "linear, for the label count", "count", add_linear},
    {"distance", "linear, for the label distance", "distance", add_linear},
    {"knn", "nearest neighbours by cosine", nullptr,
     [](CLI::App& app, Arguments& a) { add_features(app, a), app.add_option("--k", a.ks, "neighbours that vote, a,b,c")->delimiter(',')->check(CLI::Range(1, 100000)); }},
    {"low-shot", "the linear probe on few labels", nullptr,
     [](CLI::App& app, Arguments& a) {
       add_features(app, a);
       auto* per_class = app.add_option("--per-class", a.shots.per_class, "labels known of each class")->check(CLI::Range(1, 1000000));
       auto* percent = app.add_option("--percent", a.shots.percent, "labels known, of the training images")->check(CLI::Range(0.0001, 100.0));
       per_class->excludes(percent);
       app.add_flag("--finetune", a.few_finetuned, "train the encoder too; takes the options of finetune");
       add_finetune(app, a);
       app.add_option("--draws", a.draws, "how often labels are drawn")->check(CLI::Range(1, 1000));
     }},
    {"finetune", "encoder and a linear head trained on the labels", nullptr,
     [](CLI::App& app, Arguments& a) {
       add_finetune(app, a);
       app.add_option("--seeds", a.seeds, "several seeds a,b,c: the mean and its standard error over them")->delimiter(',');
     }},
    {"segment", "object or background, or its class, read off single patches; masks are pictures", nullptr,
     [](CLI::App& app, Arguments& a) { app.add_option("--masks", a.masks, "pictures with the images' names, bright where the object is; default for scenes: the generator's"); }},
    {"attentive", "a cross-attention block with a learned query over frozen patches", nullptr,
     [](CLI::App& app, Arguments& a) {
       app.add_option("--epochs", a.attentive.epochs, "over the training images")->check(CLI::Range(1, 10000));
       app.add_option("--batch", a.attentive.batch, "images a step")->check(CLI::Range(1, 65536));
     }},
};

int failed(const Error& error) {
  std::cerr << "tessera evaluate: " << error.message << "\n";
  return exit_code_of(error);
}

std::string percent(double share) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f%%", 100 * share);
  return text;
}

void print_table(const nlohmann::ordered_json& result) {
  std::printf("%-10s %9s %9s  %-23s %s\n", "label", "value", "+- error", "random init", "pixels");
  for (const auto& [label, p] : result["probes"].items()) {
    const auto baseline = [&, &p = p](const char* name) -> std::string {
      if (!p.contains("baselines") || !p["baselines"].contains(name)) return "-";
      const std::string value = percent(p["baselines"][name].get<double>());
      if (!p.contains("above_baselines")) return value;
      const auto& above = p["above_baselines"][name];
      char text[48];
      std::snprintf(text, sizeof text, " (%+.1f +- %.1f)", 100 * above["value"].get<double>(), 100 * above["standard_error"].get<double>());
      return value + text;
    };
    std::printf("%-10s %8.1f%% %8.1f%%  %-23s %s\n", label.c_str(), 100 * p["value"].get<double>(), 100 * p["standard_error"].get<double>(), baseline("random_init").c_str(), baseline("pixels").c_str());
    if (!p.contains("by_k")) continue;
    for (const auto& [k, score] : p["by_k"].items()) std::printf("  k = %-5s weighted %5.1f%%  majority %5.1f%%\n", k.c_str(), 100 * score["weighted"].get<double>(), 100 * score["majority"].get<double>());
  }
}

// Monitors need no labels, so they share little with the probes.
void add_monitors(CLI::App& app, Arguments& a) {
  app.add_option("model", a.model, "run, checkpoint folder, Hugging Face folder or published .pth.tar")->required();
  app.add_option("--data", a.monitors.data, "images: folder, tar shards, or scenes:N; labels are not needed")->required();
  app.add_option("--images", a.monitors.images, "at most so many")->check(CLI::Range(10, 100000000));
  app.add_option("--encoder", a.encoder, "target or context")->check(CLI::IsMember({"target", "context"}));
  app.add_option("--seed", a.monitors.seed, "of the choice of images");
  app.add_option("--threads", a.monitors.threads, "compute threads")->check(CLI::Range(1, 1024));
  app.add_option("--heads", a.heads, "attention heads of a published file of sizes that no variant has")->check(CLI::Range(1, 256));
  app.add_option("--out", a.out, "JSON file to write; default: evaluation/ of the run");
  app.add_flag("--json", a.json, "one JSON object on the last line of stdout");
}

void print_monitors(const nlohmann::ordered_json& result) {
  for (const char* what : {"features", "patches"}) {
    const auto& s = result[what];
    std::printf("%-9s effective rank %7.2f   deviation mean %.4f min %.4f   mean cosine %.4f%s\n", what, s["effective_rank"].get<double>(), s["deviation_mean"].get<double>(), s["deviation_min"].get<double>(),
                s["mean_cosine"].get<double>(), s["collapsed"].get<bool>() ? "   collapsed" : "");
  }
  if (!result.contains("predictor")) return;
  std::printf("predictor loss %.4f; by where a block's centre lies:\n", result["predictor"]["loss"].get<double>());
  for (const auto& row : result["predictor"]["by_position"]) {
    for (const auto& cell : row) std::printf("  %6.4f", cell["loss"].is_null() ? std::nan("") : cell["loss"].get<double>());
    std::printf("\n");
  }
  for (const auto& [size, cell] : result["predictor"]["by_size"].items()) std::printf("  %-6s patches  %.4f  (%lld blocks)\n", size.c_str(), cell["loss"].get<double>(), cell["blocks"].get<long long>());
}

int run_report(const Arguments& a) {
  const auto result = write_report(a.model, a.out);
  if (!result) return failed(result.error());
  if (a.json) std::cout << result->dump() << std::endl;
  else std::cout << (*result)["out"].get<std::string>() << "\n";
  return 0;
}

// Where the JSON goes: --out, or the run's evaluation/; empty: nowhere.
std::string file_of(const std::string& protocol, const Arguments& a, const LoadedModel& model) {
  if (!a.out.empty()) return a.out;
  if (model.run_dir.empty()) return "";
  return model.run_dir + "/evaluation/" + protocol + "-step-" + std::to_string(model.state.step) + ".json";
}

// file empty: nowhere.
Status write_document(const std::string& file, const nlohmann::ordered_json& document) {
  if (file.empty()) return {};
  if (std::filesystem::path(file).has_parent_path()) TESSERA_TRY(make_folders(std::filesystem::path(file).parent_path().string()));
  return write_file_atomic(file, document.dump(1) + "\n");
}

int run_monitors(Arguments& a) {
  at::set_num_threads(a.monitors.threads);
  const auto evaluate = [&]() -> Result<nlohmann::ordered_json> {
    TESSERA_ASSIGN(a.monitors.encoder, encoder_kind(a.encoder));
    TESSERA_ASSIGN(const LoadedModel model, load_model(a.model, a.heads));
    TESSERA_ASSIGN(nlohmann::ordered_json result, evaluate_monitors(model, a.monitors));
    TESSERA_TRY(write_document(file_of("monitors", a, model), result));
    return result;
  };
  const auto result = evaluate();
  if (!result) return failed(result.error());
  if (a.json) std::cout << result->dump() << std::endl;
  else print_monitors(*result);
  return 0;
}

Result<nlohmann::ordered_json> run_linear(const Arguments& a, LoadedModel first, const std::vector<int64_t>& seeds, const std::string& file) {
  std::vector<LoadedModel> models{std::move(first)};
  for (const std::string& path : a.also) {
    TESSERA_ASSIGN(LoadedModel model, load_model(path, a.heads));
    models.push_back(std::move(model));
  }
  TESSERA_ASSIGN(LinearResult result, evaluate_linear(models, a.options, seeds, a.probe));
  if (!file.empty()) {
    const std::string picture = std::filesystem::path(file).replace_extension(".confusion.png").string();
    TESSERA_TRY(draw_confusion(result.confusion_cc, picture));
    result.document["confusion_png"] = picture;
  }
  return std::move(result.document);
}

Result<nlohmann::ordered_json> run_protocol(const std::string& protocol, Arguments& a) {
  TESSERA_ASSIGN(a.options.encoder, encoder_kind(a.encoder));
  a.options.pooling = a.features == "last4" ? Pooling::kLast4 : Pooling::kMean;
  a.options.baselines = !a.no_baselines;
  a.probe.solver = a.solver == "sgd" ? Solver::kSgd : a.solver == "lars" ? Solver::kLars : Solver::kLbfgs;
  if (!a.label.empty()) a.options.labels = {a.label};
  TESSERA_ASSIGN(const LoadedModel model, load_model(a.model, a.heads));
  const std::vector<int64_t> seeds = a.seeds.empty() ? std::vector<int64_t>{a.options.seed} : a.seeds;
  const std::string file = file_of(protocol + (a.few_finetuned ? "-finetune" : ""), a, model);
  if (!file.empty() && std::filesystem::path(file).has_parent_path()) TESSERA_TRY(make_folders(std::filesystem::path(file).parent_path().string()));
  auto result = protocol == "knn"         ? evaluate_knn(model, a.options, a.ks)
                : protocol == "segment"   ? evaluate_segment(model, a.options, a.masks)
                : protocol == "finetune"  ? evaluate_finetune(model, a.options, a.finetune, seeds)
                : protocol == "low-shot" && a.few_finetuned ? evaluate_low_shot_finetune(model, a.options, a.finetune, a.shots, a.draws)
                : protocol == "low-shot"  ? evaluate_low_shot(model, a.options, a.shots, a.draws)
                : protocol == "attentive" ? evaluate_attentive(model, a.options, a.attentive)
                                          : run_linear(a, model, seeds, file);
  if (result) TESSERA_TRY(write_document(file, *result));
  return result;
}

}  // namespace

int evaluate_main(int argc, char** argv) {
  CLI::App app{"Evaluates a model's frozen features"};
  app.name("tessera evaluate");
  app.require_subcommand(1);
  Arguments a;
  for (const Protocol& p : kProtocols) {
    CLI::App* sub = app.add_subcommand(p.name, p.help);
    add_common(*sub, a);
    if (p.add) p.add(*sub, a);
  }
  CLI::App* monitors = app.add_subcommand("monitors", "whether features collapse, and where the predictor fails; no labels needed");
  add_monitors(*monitors, a);
  CLI::App* report = app.add_subcommand("report", "one HTML page about a run");
  report->add_option("run", a.model, "run folder, or its name below runs/")->required();
  report->add_option("--out", a.out, "HTML file; default: report.html of the run");
  report->add_flag("--json", a.json, "one JSON object on the last line of stdout");
  const std::string word = argc > 1 ? argv[1] : "";
  const bool known = std::any_of(std::begin(kProtocols), std::end(kProtocols), [&](const Protocol& p) { return word == p.name; });
  if (!word.empty() && word[0] != '-' && !known && word != "report" && word != "monitors") return failed({ErrorCode::kUsage, "there is no evaluation " + word + "; --help lists them"});
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : exit_codes::kUsage;
  }
  if (report->parsed()) return run_report(a);
  if (monitors->parsed()) return run_monitors(a);
  const std::string protocol = app.get_subcommands().front()->get_name();
  for (const Protocol& p : kProtocols)
    if (protocol == p.name && p.label) a.label = p.label;
  if (protocol == "low-shot" && a.shots.per_class == 0 && a.shots.percent == 0) return failed({ErrorCode::kUsage, "low-shot needs --per-class N or --percent P"});
  at::set_num_threads(a.options.threads);
  const auto result = run_protocol(protocol, a);
  if (!result) return failed(result.error());
  if (a.json) std::cout << result->dump() << std::endl;
  else print_table(*result);
  return 0;
}

}  // namespace tessera::evaluate
