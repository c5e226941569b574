// `tessera visualize predictor` and `tessera visualize train-decoder`.
#include <ATen/Parallel.h>
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <iostream>

#include "common/file.h"
#include "common/log.h"
#include "worker/evaluate/commands.h"
#include "worker/evaluate/imagined.h"

namespace tessera::evaluate {
namespace {

namespace fs = std::filesystem;

struct Arguments {
  std::string model, out, decoder;
  ImaginedOptions options;
  bool json = false;
};

void add_common(CLI::App& app, Arguments& a) {
  app.add_option("model", a.model, "run, checkpoint or published .pth.tar: a model with its predictor")->required();
  app.add_option("--data", a.options.data, "images: folder, tar shards, or scenes:N; labels are not needed")->required();
  app.add_option("--steps", a.options.training.steps, "training steps of the decoder")->check(CLI::Range(1, 100000000));
  app.add_option("--pairs", a.options.pairs, "masked blocks that it learns from, at most")->check(CLI::Range(100, 100000000));
  app.add_option("--batch", a.options.training.batch, "blocks a step")->check(CLI::Range(1, 65536));
  app.add_option("--seed", a.options.training.seed, "of the decoder's noise");
  app.add_option("--threads", a.options.threads, "compute threads")->check(CLI::Range(1, 1024));
  app.add_flag("--json", a.json, "one JSON object on the last line of stdout");
}

int failed(const Error& error) {
  std::cerr << "tessera visualize: " << error.message << "\n";
  return exit_code_of(error);
}

Status make_parent(const std::string& file) {
  const auto parent = fs::path(file).parent_path();
  return parent.empty() ? Status{} : make_folders(parent.string());
}

Result<nlohmann::ordered_json> train(const Arguments& a) {
  TESSERA_ASSIGN(const LoadedModel model, load_model(a.model));
  TESSERA_TRY(make_parent(a.out));
  return train_decoder(model, a.options, a.out);
}

// The decoder that was named, or the folder's own, which is trained first when it is missing.
Result<nlohmann::ordered_json> imagine(const Arguments& a) {
  TESSERA_ASSIGN(const LoadedModel model, load_model(a.model));
  TESSERA_TRY(make_folders(a.out));
  const std::string file = a.decoder.empty() ? a.out + "/decoder.safetensors" : a.decoder;
  nlohmann::ordered_json trained;
  if (a.decoder.empty() && !fs::exists(file)) {
    log_info("no decoder in {} yet: training one; minutes on two cores", a.out);
    TESSERA_ASSIGN(trained, train_decoder(model, a.options, file));
  }
  TESSERA_ASSIGN(const PictureDecoder decoder, PictureDecoder::load(file, digest_of(model)));
  TESSERA_ASSIGN(nlohmann::ordered_json result, draw_imagined(model, decoder, a.options, a.out + "/predictor.png"));
  result["decoder"] = file;
  if (!trained.is_null()) result["training"] = std::move(trained);
  TESSERA_TRY(write_file_atomic(a.out + "/predictor.json", result.dump(1) + "\n"));
  return result;
}

}  // namespace

int predictor_main(int argc, char** argv) {
  const bool only_train = std::string(argv[0]) == "train-decoder";
  CLI::App app{only_train ? "Trains the picture decoder of a model's predictor" : "Draws what the predictor imagines under masked blocks"};
  app.name(std::string("tessera visualize ") + argv[0]);
  Arguments a;
  add_common(app, a);
  app.add_option("--out", a.out, only_train ? "safetensors file of the decoder" : "folder of the sheet, and of the decoder unless --decoder names one")->required();
  if (!only_train) {
    app.add_option("--decoder", a.decoder, "what train-decoder wrote for this model; default: decoder.safetensors of --out, trained when missing");
    app.add_option("--rows", a.options.rows, "images")->check(CLI::Range(1, 64));
    app.add_option("--draws", a.options.draws, "samples of each block")->check(CLI::Range(1, 64));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : exit_codes::kUsage;
  }
  at::set_num_threads(a.options.threads);
  const auto result = only_train ? train(a) : imagine(a);
  if (!result) return failed(result.error());
  if (a.json) {
    std::cout << result->dump() << std::endl;
  } else if (only_train) {
    std::printf("%s: loss %.4f after %lld steps, %.0f s\n", a.out.c_str(), (*result)["loss"].get<double>(), static_cast<long long>(a.options.training.steps), (*result)["seconds"].get<double>());
  } else {
    std::printf("%s\nthe mean draw is %.1f %% of full brightness off, with another block's condition %.1f %%; draws differ by %.1f %%\n", (*result)["out"].get<std::string>().c_str(),
                100 * (*result)["error"].get<double>(), 100 * (*result)["other_error"].get<double>(), 100 * (*result)["deviation"].get<double>());
  }
  return 0;
}

}  // namespace tessera::evaluate
