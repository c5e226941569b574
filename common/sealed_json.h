// A JSON document that carries the hash of its own content under "content_hash": XXH3-128 of the compact dump, keys sorted, without that
// key. A checkpoint's manifest is one: every other byte of a checkpoint is covered by a hash in the manifest.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "common/result.h"

namespace tessera {

// The document's text, indented by one blank, with its hash.
std::string seal_json(nlohmann::json document);
// Reads it again. Error: kFixData naming `path`: no JSON object, no hash, or another content than the hash says.
Result<nlohmann::json> open_sealed_json(const std::string& text, const std::string& path);

}  // namespace tessera
