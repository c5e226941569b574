// Shared by the exports.
#pragma once

#include "common/safetensors.h"
#include "worker/model/io/export.h"

namespace tessera::model {

// An encoder's tensors under their published names, in the published order: pos_embed first.
std::vector<TensorView> encoder_tensors(const State& state, Encoder encoder);
std::vector<TensorView> predictor_tensors(const State& state);

// Makes the folder and checks that none of the names is there. Errors: kIo, kUsage.
Status prepare(const ExportTo& to, const std::vector<std::string>& names);

}  // namespace tessera::model
