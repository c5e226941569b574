// `tessera neighbours`: which images of a dataset look alike to the encoder, as a picture sheet. Needs no labels.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "worker/evaluate/features.h"

namespace tessera::evaluate {

struct NeighbourOptions {
  std::string image;       // a file, or the key of a sample of `data`, which is then no neighbour of itself
  std::string data, out;   // out: PNG
  std::string embeddings;  // folder of `tessera embed` over the same data; empty: computed
  EncoderKind encoder = EncoderKind::kTarget;
  int64_t k = 8;
  int64_t limit = 0;  // first so many samples; 0: all
  int threads = 2;
};

// Returns {"schema", "query", "neighbours": [{"key", "sample", "similarity"}], "out", "settings"}, nearest first.
// Errors: kFixData (an image that cannot be read; fewer samples than neighbours; embeddings of another model or data);
// kUsage (embeddings of patches); kIo.
Result<nlohmann::ordered_json> find_neighbours(const LoadedModel& model, const NeighbourOptions& options);

}  // namespace tessera::evaluate
