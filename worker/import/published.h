// The published checkpoints (*.pth.tar: encoder, target_encoder, predictor, opt, scaler, epoch, loss, batch_size,
// world_size, lr) as a state. Streams: each tensor is read from the file straight into its place, so peak memory is the
// state and a buffer of one tensor. Source: facts of the published code, "Checkpoints" and "Optimiser".
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/config.h"
#include "common/result.h"
#include "worker/model/state.h"

namespace tessera::import {

struct PublishedOptions {
  std::optional<FunctionConfig> function;  // the model that the file must fit; absent: read off its shapes
  int64_t num_heads = 0;                   // for sizes that no published variant has
  int64_t steps_per_epoch = 0;             // 0: from the optimizer's own step count
  bool optimizer = true;                   // false: weights only
};

struct Published {
  FunctionConfig function;
  model::State state;     // step = finished epochs x steps per epoch
  int64_t epoch = 0;      // finished epochs ("ep50" holds 49)
  double loss = 0;
  int64_t tensors = 0, bytes = 0;    // taken, as stored in the file
  std::vector<std::string> skipped;  // keys of the file that have no place here, with the reason
};

// Errors: kIo; kFixData naming file, tensor or byte, with what was expected and found; kUsage when num_heads or
// steps_per_epoch is needed.
Result<Published> read_published(const std::string& path, const PublishedOptions& options);

}  // namespace tessera::import
