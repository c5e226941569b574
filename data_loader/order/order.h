// Which sample is where in an epoch, and where in which epoch a step begins. Pure functions of (seed, epoch, position).
//
// shuffle: global  one permutation of all samples per epoch, O(1) memory (order/permutation.h, purpose kShuffle).
// shuffle: block   the manifest's blocks are permuted (kShuffleBlocks); each run of kWindowBlocks blocks in that order is a
//                  window, whose samples are permuted among themselves (kShuffle, one stream per window). A reader
//                  needs kWindowBlocks blocks at a time, each once per epoch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/config.h"
#include "common/ids.h"
#include "common/result.h"

namespace tessera {

inline constexpr int kWindowBlocks = 16;

// The order's identity: everything that sample_at depends on beside (epoch, position).
struct SampleOrder {
  enum class Shuffle {
    kGlobal,
    kBlock,
  };
  Shuffle shuffle = Shuffle::kGlobal;
  uint64_t seed = 0;
  int64_t sample_count = 0;
  std::vector<int64_t> block_firsts;  // first sample of each block, ascending, [0] = 0; only used by kBlock
};
// block_firsts: the manifest's block table. Errors: kFixConfig if the shuffle is unknown or there are no samples,
// kFixData if the block table does not start at 0 or does not ascend below sample_count.
Result<SampleOrder> make_order(const FunctionConfig& function, int64_t sample_count, std::span<const int64_t> block_firsts);

// The order within one epoch; O(blocks) to make for kBlock, O(1) for kGlobal. Immutable: share it among threads.
// Holds a pointer to the order, which must outlive it.
class EpochOrder {
 public:
  EpochOrder(const SampleOrder& order, int64_t epoch);
  int64_t epoch() const { return epoch_; }
  SampleId sample_at(int64_t position) const;    // position in [0, sample_count)
  int64_t position_of(SampleId sample) const;  // the inverse

 private:
  int64_t block_begin(int64_t block) const;
  int64_t block_end(int64_t block) const;

  const SampleOrder* order_;
  int64_t epoch_;
  std::vector<int64_t> blocks_;         // kBlock: block at each place of the permuted order
  std::vector<int64_t> place_of_;       // its inverse
  std::vector<int64_t> place_begins_;   // first position of each place, then sample_count
};

// One value without keeping an EpochOrder: O(blocks) for kBlock.
SampleId sample_at(const SampleOrder& order, int64_t epoch, int64_t position);

// Where a tile of a step lies. No step spans two epochs; the last sample_count - steps_per_epoch * global positions of an
// epoch are its tail and are not trained on.
struct TilePosition {
  int64_t epoch = 0;
  int64_t first_position = 0;  // of the tile's first sample; the others follow
};
// steps_per_epoch: of run_length (common/config.h), >= 1; step >= 0; tile in [0, batch.tiles).
TilePosition tile_position(const BatchConfig& batch, int64_t steps_per_epoch, Step step, TileIndex tile);

// Sample ids of a tile, in its order; `order` must be of tile_position's epoch.
std::vector<SampleId> tile_samples(const EpochOrder& order, const BatchConfig& batch, const TilePosition& position);

}  // namespace tessera
