// Bytes from a loader to tensors, and bounce buffers to state.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "worker/model/engine.h"
#include "worker/trainer/fetch.h"

namespace tessera::trainer {

// Copies into aligned tensors of the tile's own.
model::Tile to_tensors(const FetchedTile& fetched);
// The concatenated encoder target (bucket order) becomes state.target.
void adopt_target(model::State& state, const float* target);
// n floats of a GPU's memory.
std::shared_ptr<float> device_floats(int64_t n, const std::string& device);

}  // namespace tessera::trainer
