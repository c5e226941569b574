// What `tessera-data` does; `tessera data ...` runs it. Each command returns the JSON object of INTERFACES.md
// (samples, shards, bytes, manifest_digest, bad, ...).
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "common/result.h"
#include "data_loader/dataset/dataset.h"
#include "data_loader/dataset/scenes.h"

namespace tessera::data {

// Opens or makes the manifest. Adds indexed (whether it was made now), because, manifest, kind, labels, classes.
Result<nlohmann::json> index_command(const OpenOptions& options);
// As index, and the first keys with their labels and sizes, block sizes, and per label its range.
Result<nlohmann::json> inspect_command(const OpenOptions& options);
// Reads and decodes every sample: bad lists those whose bytes differ from the manifest or do not decode.
Result<nlohmann::json> verify_command(const OpenOptions& options);
// Writes the dataset again in shards that decode faster: see dataset/repack.h. Adds packed, kept, original_bytes, stored_bytes, size_ratio,
// shards_resumed, seconds.
Result<nlohmann::json> repack_command(const OpenOptions& open, const std::string& out);
// Writes the procedural dataset and indexes it. masks: a folder for the masks of the same samples; empty: none.
Result<nlohmann::json> make_scenes_command(const std::string& folder, const std::string& masks, const ScenesOptions& options, const OpenOptions& open);

}  // namespace tessera::data
