#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>

#include "common/file.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/import/published.h"
#include "worker/tool/commands.h"

namespace tessera::tool {
namespace {

struct Options {
  std::string file, out, config;
  int64_t heads = 0, steps_per_epoch = 0;
  bool no_optimizer = false, json = false;
};

// A lineage of its own: the same file gives the same name wherever it is imported.
std::string lineage_of(const model::State& state, const FunctionConfig& function) {
  Hasher hasher;
  hasher.add_string(to_hex(state.digest()));
  hasher.add_hash(function_id(function));
  return to_hex(hasher.finish()).substr(0, 16);
}

Result<nlohmann::json> run(const Options& o) {
  import::PublishedOptions options{{}, o.heads, o.steps_per_epoch, !o.no_optimizer};
  if (!o.config.empty()) {
    TESSERA_ASSIGN(const Config config, load_config(o.config, {}, process_environment()));
    options.function = config.function;
  }
  const std::string out = std::filesystem::path(o.out + "/").parent_path().string();
  if (std::filesystem::exists(out)) return fail(ErrorCode::kUsage, "[import] " + out + " exists; choose another --out or remove it");
  TESSERA_TRY(make_folders(std::filesystem::absolute(out).parent_path().string()));
  TESSERA_ASSIGN(const import::Published p, import::read_published(o.file, options));
  checkpoint::Scalars scalars;
  scalars.step = p.state.step;
  scalars.adam_steps = p.state.adam_steps;
  scalars.lineage = lineage_of(p.state, p.function);
  scalars.function_yaml = print_function(p.function);
  scalars.function_id = to_hex(function_id(p.function));
  scalars.numerics_class = "imported";
  scalars.state_digest = p.state.digest();
  TESSERA_TRY(checkpoint::write_checkpoint(p.state, scalars, out));
  return nlohmann::json{{"tensors", p.tensors},         {"bytes", p.bytes},         {"skipped", p.skipped},
                        {"checkpoint", out},            {"step", p.state.step},     {"epoch", p.epoch},
                        {"model", p.function.model.name}, {"state_digest", to_hex(scalars.state_digest)}, {"lineage", scalars.lineage}};
}

}  // namespace

int import_main(int argc, char** argv) {
  CLI::App app{"Reads a published I-JEPA checkpoint into a checkpoint folder, without Python and without executing anything in it"};
  app.name("tessera import");
  app.require_subcommand(1);
  Options o;
  CLI::App* ijepa = app.add_subcommand("ijepa", "a .pth.tar of the published code");
  ijepa->add_option("FILE", o.file, "the file")->required();
  ijepa->add_option("--out", o.out, "checkpoint folder to write; it must not exist")->required();
  ijepa->add_option("--config", o.config, "configuration that the model must fit and that the run will continue with");
  ijepa->add_option("--heads", o.heads, "attention heads, for sizes that no published variant has")->check(CLI::Range(1, 256));
  ijepa->add_option("--steps-per-epoch", o.steps_per_epoch, "updates per epoch; otherwise the optimizer's count says it")->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  ijepa->add_flag("--no-optimizer", o.no_optimizer, "weights only; the moments start at zero");
  ijepa->add_flag("--json", o.json, "one JSON object on the last line");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : exit_codes::kUsage;
  }
  const auto result = run(o);
  if (!result) return report(result.error());
  for (const auto& line : (*result)["skipped"]) std::cerr << "skipped " << line.get<std::string>() << "\n";
  print(*result,
        "imported " + (*result)["tensors"].dump() + " tensors, " + human_bytes((*result)["bytes"].get<int64_t>()) + " into " + (*result)["checkpoint"].get<std::string>() + " (step " +
            (*result)["step"].dump() + ", " + (*result)["epoch"].dump() + " epochs)",
        o.json);
  return 0;
}

}  // namespace tessera::tool
