// Tiles as a run sees them, crops and masks included, as tensors: for what looks at the predictor.
#pragma once

#include <memory>
#include <string>

#include "worker/evaluate/samples.h"
#include "worker/model/engine.h"

namespace tessera::evaluate {

struct SeenTile {
  proto::TileHeader header;
  model::Tile tile;
};

class TileReader {
 public:
  // Serves `function` over `data` (which may be other data than the run's) from a loader of its own.
  // Errors: those of the loader.
  static Result<TileReader> open(const FunctionConfig& function, const std::string& data, int threads);
  // The index-th tile of the run, in order of steps; what lies past the run's last step goes on as if it were longer.
  Result<SeenTile> read(int64_t index);

 private:
  TileReader(FunctionConfig function, std::unique_ptr<SampleSource> source) : function_(std::move(function)), source_(std::move(source)) {}
  FunctionConfig function_;
  std::unique_ptr<SampleSource> source_;
};

// A masked block on the patch grid: the smallest rectangle around a target's patches.
struct BlockBox {
  int64_t top = 0, left = 0, height = 0, width = 0;  // patches
  bool operator==(const BlockBox&) const = default;
};
// Of target `target` of image `image`. Pure.
BlockBox block_box(const proto::TileHeader& header, int64_t target, int64_t image);

}  // namespace tessera::evaluate
