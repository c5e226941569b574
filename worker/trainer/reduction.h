// From the gradients of a rank's tiles to the whole sum of a step, by function.reduction. Holds every gradient buffer of
// the trainer. The training thread evaluates and merges; a bucket of the last tile, once merged, may be reduced on another
// thread while the next one is computed.
//
//   begin(state, range); for each tile: engine.gradient(..., tile_buffer(t)); merge(bucket) for every bucket, once;
//   reduce(collective, bucket) for every bucket; finish(collective); then whole() is the sum until the next begin().
//
// A spare (empty range) goes from begin() to reduce(). All ranks reduce buckets in the same order.
#pragma once

#include <memory>

#include "common/config.h"
#include "common/result.h"
#include "worker/collective/collective.h"
#include "worker/model/state.h"

namespace tessera::trainer {

class Reduction {
 public:
  // Buffers lie in the arena, which must outlive it; for a GPU, in its memory.
  static Result<std::unique_ptr<Reduction>> make(const FunctionConfig& function, const model::Layout& layout, collective::SharedArena& arena, const std::string& device);
  virtual ~Reduction() = default;

  virtual void begin(const model::State& state, const TileRange& range) = 0;
  // Where this tile's gradient is to be written; tiles of the range in order.
  virtual model::FlatBuffers& tile_buffer(TileIndex tile) = 0;
  // The tile's gradient of this bucket is whole: it joins what this rank has. tile_buffer's bucket is not needed any more,
  // but still holds the tile's gradient until reduce().
  virtual void merge(size_t bucket) = 0;
  // The bucket's sum over all tiles of all ranks. Errors: the collective's.
  virtual Status reduce(collective::Collective& collective, size_t bucket) = 0;
  // After every bucket. Errors: the collective's.
  virtual Status finish(collective::Collective& /*collective*/) { return {}; }
  // The whole sum, the same bits on every rank.
  virtual model::FlatBuffers& whole() = 0;
  // What the state keeps for the reduction becomes that of the next step; whole() is this step's. Also when it is skipped.
  virtual void advance(model::State& /*state*/) const {}
  virtual int64_t bytes() const = 0;  // of all buffers
};

// One zeroed buffer per bucket, in one memory of the arena.
model::FlatBuffers arena_buffers(const model::Layout& layout, collective::SharedArena& arena, at::ScalarType type);

}  // namespace tessera::trainer
