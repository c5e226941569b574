// Bytes from a loader to tensors, and bounce buffers to state.
#pragma once

#include <vector>

#include "worker/model/engine.h"
#include "worker/trainer/fetch.h"

namespace tessera::trainer {

// Copies into aligned tensors of the tile's own.
model::Tile to_tensors(const FetchedTile& fetched);
// The concatenated encoder target (bucket order) becomes state.target.
void adopt_target(model::State& state, const float* target);

}  // namespace tessera::trainer
