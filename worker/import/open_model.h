// MODEL on the command line: a checkpoint folder, a run (its newest checkpoint), a Hugging Face folder, or a published
// .pth.tar; all become a state with its function.
#pragma once

#include <string>

#include "common/config.h"
#include "common/result.h"
#include "worker/model/state.h"

namespace tessera::import {

enum class ModelKind {
  kCheckpoint,   // all networks and the moments
  kHuggingFace,  // one encoder, found in weights and in target; no predictor
  kPublished,    // all networks; moments not read
};

struct OpenedModel {
  ModelKind kind = ModelKind::kCheckpoint;
  std::string path;  // what was read: the checkpoint's folder when a run was named
  FunctionConfig function;
  model::State state;
};

// num_heads: for a published file of sizes that no published variant has; else 0.
// Errors: kUsage when path is none of these, with what it holds; those of the readers.
Result<OpenedModel> open_model(const std::string& path, int64_t num_heads = 0);

// The newest checkpoint folder of a run (or of a checkpoints/ folder). Error: kUsage when there is none.
Result<std::string> newest_checkpoint(const std::string& run);

}  // namespace tessera::import
