// tessera config check | explain | reference | import
#include <cstdio>

#include "common/config.h"
#include "common/file.h"
#include "ops/cli/commands.h"
#include "ops/cli/explain.h"
#include "ops/cli/recipe_import.h"

namespace tessera::cli {

int config_check_command(const std::string& path, const std::vector<std::string>& overrides, Format format) {
  const auto config = load_config(path, overrides, process_environment());
  if (!config) return report(config.error(), format);
  const FunctionConfig& f = config->function;
  const std::string id = to_hex(function_id(f));
  if (format == Format::kJson) print_json({{"ok", true}, {"path", path}, {"function_id", id}});
  else
    std::printf("%s: ok, function_id %s, %s patch %lld at %lld px, %lld images a step\n", path.c_str(), id.c_str(), f.model.name.c_str(), static_cast<long long>(f.model.patch_size),
                static_cast<long long>(f.model.image_size), static_cast<long long>(f.batch.global()));
  return exit_codes::kDone;
}

int config_explain_command(const std::string& path, const std::vector<std::string>& overrides, int64_t samples, double images_per_second, Format format) {
  const auto config = load_config(path, overrides, process_environment());
  if (!config) return report(config.error(), format);
  const auto facts = explain(*config, samples, images_per_second);
  if (!facts) return report(facts.error(), format);
  if (format == Format::kJson) print_json(*facts);
  else std::printf("%s", explain_text(*facts).c_str());
  return exit_codes::kDone;
}

int config_reference_command() {
  std::printf("%s", configuration_reference().c_str());
  return exit_codes::kDone;
}

int config_import_command(const std::string& path, const std::string& out, int64_t devices) {
  const auto text = read_file(path, 1 << 20);
  if (!text) return report(Error{ErrorCode::kFixConfig, "[config] " + text.error().message}, Format::kText);
  const auto imported = import_recipe(*text, path, devices);
  if (!imported) return report(imported.error(), Format::kText);
  for (const std::string& note : imported->notes) say(note);
  if (out.empty()) {
    std::printf("%s", imported->yaml.c_str());
  } else if (const auto written = write_file_atomic(out, imported->yaml); !written) {
    return report(written.error(), Format::kText);
  }
  return exit_codes::kDone;
}

}  // namespace tessera::cli
