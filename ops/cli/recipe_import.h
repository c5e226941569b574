// The published I-JEPA YAML (groups data, mask, meta, optimization, logging) as a configuration of ours.
#pragma once

#include <string>
#include <vector>

#include "common/result.h"

namespace tessera::cli {

struct ImportedRecipe {
  std::string yaml;                // loads with load_config
  std::vector<std::string> notes;  // one line for each key that has no meaning here, or another one
};

// devices: of the published run; data.batch_size is per device, so a step has `devices` tiles of that size. 0: as many as
// make the published global batch of 2048. Errors: kFixConfig (no YAML, a value of the wrong kind, a result that our own
// checks refuse), naming file and key.
Result<ImportedRecipe> import_recipe(const std::string& yaml_text, const std::string& origin, int64_t devices = 0);

}  // namespace tessera::cli
