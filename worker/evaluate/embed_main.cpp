#include <ATen/Parallel.h>
#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>

#include "worker/evaluate/commands.h"
#include "worker/evaluate/embed.h"
#include "worker/evaluate/neighbours.h"

namespace tessera::evaluate {
namespace {

struct Common {
  std::string model, encoder = "target";
  int64_t heads = 0;
  bool json = false;
};
void add_common(CLI::App& app, Common& c, int* threads) {
  app.add_option("--encoder", c.encoder, "target or context")->check(CLI::IsMember({"target", "context"}));
  app.add_option("--threads", *threads, "compute threads")->check(CLI::Range(1, 1024));
  app.add_option("--heads", c.heads, "attention heads of a published file of sizes that no variant has")->check(CLI::Range(1, 256));
  app.add_flag("--json", c.json, "one JSON object on the last line of stdout");
}

int failed(const char* command, const Error& error) {
  std::cerr << "tessera " << command << ": " << error.message << "\n";
  return exit_code_of(error);
}

Result<nlohmann::ordered_json> run_embed(const Common& c, EmbedOptions& o) {
  TESSERA_ASSIGN(o.encoder, encoder_kind(c.encoder));
  TESSERA_ASSIGN(const LoadedModel model, load_model(c.model, c.heads));
  return embed(model, o);
}

Result<nlohmann::ordered_json> run_neighbours(const Common& c, NeighbourOptions& o) {
  TESSERA_ASSIGN(o.encoder, encoder_kind(c.encoder));
  TESSERA_ASSIGN(const LoadedModel model, load_model(c.model, c.heads));
  return find_neighbours(model, o);
}

}  // namespace

int embed_main(int argc, char** argv) {
  CLI::App app{"Writes a dataset's embeddings: NPY, safetensors, ids, labels"};
  app.name("tessera embed");
  Common c;
  EmbedOptions o;
  std::string pool = "mean";
  bool projector = false;
  app.add_option("model", c.model, "run, checkpoint folder, Hugging Face folder or published .pth.tar")->required();
  app.add_option("--data", o.data, "folder of images, tar shards, or scenes:N; labels are not needed")->required();
  app.add_option("--out", o.out, "folder to make, or an empty one")->required();
  app.add_option("--pool", pool, "mean: averaged tokens; last4: those of the last four blocks side by side; patches: every token")->check(CLI::IsMember({"mean", "patches", "last4"}));
  app.add_option("--limit", o.limit, "the first so many samples")->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  app.add_flag("--projector", projector, "vectors.tsv and metadata.tsv for TensorBoard's projector too");
  add_common(app, c, &o.threads);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : exit_codes::kUsage;
  }
  at::set_num_threads(o.threads);
  o.pooling = pool == "last4" ? Pooling::kLast4 : pool == "patches" ? Pooling::kPatches : Pooling::kMean;
  o.projector = projector ? Projector::kTensorBoard : Projector::kNone;
  const auto result = run_embed(c, o);
  if (!result) return failed("embed", result.error());
  if (c.json) std::cout << result->dump() << std::endl;
  else std::cout << "embedded " << (*result)["samples"] << " samples into " << o.out << "\n";
  return 0;
}

int neighbours_main(int argc, char** argv) {
  CLI::App app{"Draws an image beside its nearest neighbours in a dataset"};
  app.name("tessera neighbours");
  Common c;
  NeighbourOptions o;
  app.add_option("model", c.model, "run, checkpoint folder, Hugging Face folder or published .pth.tar")->required();
  app.add_option("image", o.image, "an image file, or the key of a sample of --data")->required();
  app.add_option("--data", o.data, "where to look: folder of images, tar shards, or scenes:N; labels are not needed")->required();
  app.add_option("--out", o.out, "PNG file to write")->required();
  app.add_option("--k", o.k, "neighbours")->check(CLI::Range(1, 256));
  app.add_option("--limit", o.limit, "look at the first so many samples only")->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  app.add_option("--embeddings", o.embeddings, "folder that tessera embed wrote for this model and data");
  add_common(app, c, &o.threads);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : exit_codes::kUsage;
  }
  at::set_num_threads(o.threads);
  const auto result = run_neighbours(c, o);
  if (!result) return failed("neighbours", result.error());
  if (c.json) {
    std::cout << result->dump() << std::endl;
    return 0;
  }
  for (const auto& one : (*result)["neighbours"]) std::printf("%.4f  %s\n", one["similarity"].get<double>(), one["key"].get<std::string>().c_str());
  std::cout << o.out << "\n";
  return 0;
}

}  // namespace tessera::evaluate
