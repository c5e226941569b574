// "scenes:N[:SIZE[:SEED]]" as a data path: the procedural dataset, made once into a cache folder and kept; "scene-masks:N[:SIZE[:SEED]]"
// its masks, sample by sample (scenes.h).
#pragma once

#include <string>

#include "common/result.h"
#include "data_loader/dataset/scenes.h"

namespace tessera::data {

bool is_scenes_path(const std::string& data_path);

// Error kFixConfig: not of that form or out of range.
Result<ScenesOptions> parse_scenes_path(const std::string& data_path);

// $TESSERA_CACHE, or $XDG_CACHE_HOME/tessera, or ~/.cache/tessera.
std::string cache_folder();

// The folder of the dataset, <cache>/scenes-<count>-<size>-<seed>-v2 (or scene-masks-...); makes it when it is not there. Processes that ask at
// once wait for one another (flock), and a folder appears only when it is whole. Errors: kFixConfig, kIo.
Result<std::string> ensure_scenes(const std::string& data_path, int threads);

}  // namespace tessera::data
