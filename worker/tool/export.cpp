#include <CLI/CLI.hpp>
#include <iostream>

#include "common/file.h"
#include "worker/import/open_model.h"
#include "worker/model/io/export.h"
#include "worker/tool/commands.h"

namespace tessera::tool {
namespace {

struct Options {
  std::string model, out, weights;
  int64_t heads = 0, steps_per_epoch = 0;
  bool overwrite = false, json = false;
};

Result<model::Exported> run(const std::string& kind, const Options& o) {
  TESSERA_ASSIGN(const import::OpenedModel opened, import::open_model(o.model, o.heads));
  const model::Encoder encoder = o.weights == "context" ? model::Encoder::kContext : model::Encoder::kTarget;
  const model::ExportTo to{o.out, o.overwrite ? model::Existing::kReplace : model::Existing::kRefuse};
  if (kind == "safetensors") return model::export_safetensors(opened.function, opened.state, encoder, to);
  if (kind == "huggingface") return model::export_hugging_face(opened.function, opened.state, encoder, to);
  model::PthOptions pth{{}, o.steps_per_epoch};
  if (!o.weights.empty() || opened.kind == import::ModelKind::kHuggingFace) pth.only = encoder;
  return model::export_pth(opened.function, opened.state, pth, to);
}

}  // namespace

int export_main(int argc, char** argv) {
  CLI::App app{"Writes a model in a form that other programs read"};
  app.name("tessera export");
  app.require_subcommand(1);
  Options o;
  const std::pair<const char*, const char*> kinds[] = {{"safetensors", "model.safetensors with the published names"},
                                                       {"huggingface", "a folder for transformers' IJepaModel and AutoImageProcessor"},
                                                       {"pth", "model.pth.tar in the published layout; without --weights the whole checkpoint with its optimizer"}};
  for (const auto& [name, help] : kinds) {
    CLI::App* sub = app.add_subcommand(name, help);
    sub->add_option("MODEL", o.model, "checkpoint folder, run, Hugging Face folder or published .pth.tar")->required();
    sub->add_option("--out", o.out, "folder to write into")->required();
    sub->add_option("--weights", o.weights, "target (default; what the paper evaluates) or context")->check(CLI::IsMember({"target", "context"}));
    sub->add_option("--heads", o.heads, "attention heads of a published file of sizes that no variant has")->check(CLI::Range(1, 256));
    sub->add_option("--steps-per-epoch", o.steps_per_epoch, "pth: for the file's epoch count")->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
    sub->add_flag("--overwrite", o.overwrite, "replace files of the same names");
    sub->add_flag("--json", o.json, "one JSON object on the last line");
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : exit_codes::kUsage;
  }
  const auto result = run(app.get_subcommands().front()->get_name(), o);
  if (!result) return report(result.error());
  print({{"tensors", result->tensors}, {"bytes", result->bytes}, {"skipped", result->skipped}, {"files", result->files}},
        "exported " + std::to_string(result->tensors) + " tensors, " + human_bytes(result->bytes) + " into " + o.out, o.json);
  return 0;
}

}  // namespace tessera::tool
