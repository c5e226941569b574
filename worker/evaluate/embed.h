// `tessera embed`: features of a dataset as files that other programs read.
//
//   embeddings.npy          float32, C order: [n, d], or [n, patches, d] with --pool patches
//   embeddings.safetensors  "embeddings", and "labels.NAME" of each label
//   ids.txt                 keys of the samples, one a line, in row order (row i is sample i of the dataset)
//   labels.npy              int64 [n] of the label "class" (or the first one), float64 when it is no whole number or is
//                           missing for some (NaN); no file without labels
//   vectors.tsv, metadata.tsv  with --projector, for TensorBoard's projector (projector.tensorflow.org)
//   embeddings.json         what was embedded by which model; written last: a folder without it is unfinished
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "worker/evaluate/features.h"

namespace tessera::evaluate {

enum class Projector {
  kNone,
  kTensorBoard,  // vectors.tsv and metadata.tsv too
};
struct EmbedOptions {
  std::string data, out;
  Pooling pooling = Pooling::kMean;
  EncoderKind encoder = EncoderKind::kTarget;
  int64_t limit = 0;  // first so many samples; 0: all
  int threads = 2;
  Projector projector = Projector::kNone;
};

std::string pooling_name(Pooling pooling);  // "mean" | "last4" | "patches"
// Streams: memory holds some hundred images, whatever the dataset's size. Returns the document of --json.
// Errors: kUsage (the folder is not empty; a projector of patches); kFixData (fewer samples than the limit; features not
// finite); kIo.
Result<nlohmann::ordered_json> embed(const LoadedModel& model, const EmbedOptions& options);

}  // namespace tessera::evaluate
